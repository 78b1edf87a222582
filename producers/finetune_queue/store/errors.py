"""What the store raises itself; trouble with the connection stays a ``redis.RedisError``."""

from finetune_queue import __version__
from finetune_queue.contract.job import JobRecord


class JobNotFoundError(Exception):
    """There is no job with this id."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"There is no job {job_id}. It never existed, or ended longer ago than jobs are kept.")


class UnreadableJobError(Exception):
    """The job's record holds what this version does not know, so a newer one wrote it: it is left alone."""

    def __init__(self, job_id: str, problem: str) -> None:
        super().__init__(
            f"Job {job_id} was written by another version of finetune-queue; {__version__} cannot read it ({problem}). "
            "Use the newer version."
        )
        self.job_id = job_id


class ConflictError(Exception):
    """The job changed since it was read: somebody else acts on it, and this write was refused (fencing)."""

    def __init__(self, job: JobRecord, current: str) -> None:
        super().__init__(f"Job {job.id} is at version {current or 'none'}, not {job.version}: the write was refused.")


class IdempotencyError(Exception):
    """The same idempotency key came with another request."""

    def __init__(self, job_id: str) -> None:
        super().__init__(
            f"The idempotency key belongs to job {job_id}, which was submitted with another request. "
            "Use a new key for a new request."
        )


class OwnedElsewhereError(Exception):
    """Another job already owns this training."""

    def __init__(self, finetune_id: str, owner: str) -> None:
        super().__init__(f"Training {finetune_id} belongs to job {owner}.")
        self.owner = owner


class AlreadySweptError(Exception):
    """Another message's sweep of the account is under way, or was made meanwhile."""

    def __init__(self, account: str) -> None:
        super().__init__(f"The account '{account}' is being swept, or just was.")


class NotDurableError(Exception):
    """Redis did not confirm in time that a write is in its log on disk, and in those of as many replicas as the
    settings ask for. The write was made: ``job`` is the job after it."""

    def __init__(self, job: JobRecord) -> None:
        super().__init__(
            "Redis did not confirm in time that the change is in its append-only log, and in its replicas' where set."
        )
        self.job = job
