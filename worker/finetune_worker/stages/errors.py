"""Turns errors of the layers below into the error on the job, in one place."""

from finetune_queue.contract import JobError, Stage
from finetune_worker.segmind.errors import SegmindError


def from_api(error: SegmindError, stage: Stage) -> JobError:
    """Return the job's error for an error of the API client."""
    action = "" if error.retryable else "When the cause is mended: `finetune retry JOB`."
    return JobError(code=error.code, stage=stage, message=error.detail, action=action, retryable=error.retryable)
