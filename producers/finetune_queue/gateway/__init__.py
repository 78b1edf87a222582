"""The HTTP gateway: the queue for clients that speak HTTP, a page for people, and the receiver of Segmind's webhooks.

Needs the extra ``gateway``; nothing outside this package imports it but ``finetune gateway``, late.
"""
