"""The SDK: submit fine-tunes and follow them. Safe in threads; in async code call it with ``asyncio.to_thread``."""

from finetune_queue.sdk.job import FOLLOW_EVERY, Job, Page, Submission, Waiting
from finetune_queue.sdk.queue import FineTuneQueue

__all__ = ["FOLLOW_EVERY", "FineTuneQueue", "Job", "Page", "Submission", "Waiting"]
