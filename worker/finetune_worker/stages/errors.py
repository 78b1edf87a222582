"""Turns errors of the layers below into the error on the job, in one place."""

from finetune_queue.contract import JobError, Stage
from finetune_queue.datasets.errors import DatasetError
from finetune_queue.storage import StorageError
from finetune_worker.segmind.errors import SegmindError
from finetune_worker.transfer.errors import TransferError

_THEN_RETRY = "When the cause is mended: `finetune retry JOB`."


def from_api(error: SegmindError, stage: Stage) -> JobError:
    """Return the job's error for an error of the API client."""
    return _job_error(error.code, stage, error.detail, retryable=error.retryable)


def from_transfer(error: TransferError, stage: Stage) -> JobError:
    """Return the job's error for an upload or download that did not succeed."""
    return _job_error(error.code, stage, error.detail, retryable=error.retryable)


def from_storage(error: StorageError, stage: Stage) -> JobError:
    """Return the job's error for a store that did not take or give a file."""
    return _job_error(error.code, stage, error.sentence, retryable=error.retryable)


def from_dataset(error: DatasetError, stage: Stage) -> JobError:
    """Return the job's error for a dataset that could not be had."""
    action = error.fix if error.retryable else f"{error.fix} Then `finetune retry JOB`, or submit again."
    return JobError(code=error.code, stage=stage, message=error.sentence, action=action, retryable=error.retryable)


def _job_error(code: str, stage: Stage, message: str, *, retryable: bool) -> JobError:
    return JobError(
        code=code, stage=stage, message=message, action="" if retryable else _THEN_RETRY, retryable=retryable
    )
