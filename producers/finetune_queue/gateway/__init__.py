"""The HTTP gateway: the queue for clients that speak HTTP, a page for people, and the receiver of Segmind's webhooks.

Needs the extra ``gateway``, but for ``hook_paths``. Nothing outside imports it but commands of the CLI, late.
"""
