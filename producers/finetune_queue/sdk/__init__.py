"""The SDK: submit fine-tunes and follow them. Safe in threads; in async code call it with ``asyncio.to_thread``."""

from finetune_queue.sdk.job import FOLLOW_EVERY, Job, Page, Submission
from finetune_queue.sdk.queue import FineTuneQueue
from finetune_queue.sdk.waiting import Waiting

__all__ = ["FOLLOW_EVERY", "FineTuneQueue", "Job", "Page", "Submission", "Waiting"]
