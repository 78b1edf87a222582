"""A sandbox that emulates Segmind's Fast Flux fine-tuning API, its storage hosts and its webhooks.

It follows the API's specification, not the client in this repository, and imports nothing of it. See docs/sandbox.md.
"""
