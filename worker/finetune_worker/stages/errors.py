"""Turns errors of the layers below into the error on the job, in one place."""

from finetune_queue.contract import ACCESS, RETRY_IS_USELESS, JobError, Stage
from finetune_queue.datasets.errors import DatasetError
from finetune_queue.storage import StorageError
from finetune_worker.segmind.errors import SegmindError
from finetune_worker.transfer.errors import TransferError


def again(doing: str) -> str:
    """Return the command by which a person has a stage, or a change of access, tried again."""
    return "`finetune access JOB`" if doing == ACCESS else "`finetune retry JOB`"


def from_api(error: SegmindError, stage: str) -> JobError:
    """Return the error on the job for an error of the API client, in a stage or in a change of access."""
    if (stage, error.code) in RETRY_IS_USELESS:
        action = "Submit again with that corrected: a retry would send the same."
        return JobError(code=error.code, stage=stage, message=error.detail, action=action, upstream_status=error.status)
    said = _job_error(error.code, stage, error.detail, retryable=error.retryable)
    return said.model_copy(update={"upstream_status": error.status})


def from_transfer(error: TransferError, stage: str) -> JobError:
    """Return the job's error for an upload or download that did not succeed."""
    return _job_error(error.code, stage, error.detail, retryable=error.retryable)


def from_storage(error: StorageError, stage: Stage) -> JobError:
    """Return the job's error for a store that did not take or give a file."""
    return _job_error(error.code, stage, error.sentence, retryable=error.retryable, fix=error.fix)


def from_dataset(error: DatasetError, stage: Stage) -> JobError:
    """Return the job's error for a dataset that could not be had."""
    then = "submit again" if (stage, error.code) in RETRY_IS_USELESS else "`finetune retry JOB`, or submit again"
    action = error.fix if error.retryable else f"{error.fix} Then {then}."
    return JobError(code=error.code, stage=stage, message=error.sentence, action=action, retryable=error.retryable)


def _job_error(code: str, stage: str, message: str, *, retryable: bool, fix: str = "") -> JobError:
    then = "" if retryable else f"Once the cause is fixed: {again(stage)}."
    action = f"{fix} {then}".strip()
    return JobError(code=code, stage=stage, message=message, action=action, retryable=retryable)
