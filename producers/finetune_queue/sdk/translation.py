"""From the errors of the layers below to those that the SDK raises."""

from collections.abc import Iterator
from contextlib import contextmanager

from finetune_queue import store
from finetune_queue.contract.ids import whole_job_id
from finetune_queue.errors import (
    FineTuneQueueError,
    IdempotencyConflictError,
    QueueUnavailableError,
    UnknownJobError,
    UnreadableJobError,
)
from finetune_queue.plain_words import escaped
from finetune_queue.store import (
    AuthenticationError,
    IdempotencyError,
    JobNotFoundError,
    OutOfMemoryError,
    RedisError,
    ResponseError,
)

Known = JobNotFoundError | IdempotencyError | store.UnreadableJobError | RedisError | ConnectionError
"""The errors of the layers below that :func:`translation` takes. The ConnectionError is of kombu's channels, see
:func:`~finetune_queue.messaging.patch_channels`."""


_EXAMPLE = "01a213e8-2f10-7d71-8fd6-0e5b4c7a9d21"

_SHOWN = 64
"""How many characters of a text that is no id an error quotes."""


@contextmanager
def translated() -> Iterator[None]:
    """Raise the SDK's errors for those of the layers below."""
    try:
        yield
    except (JobNotFoundError, IdempotencyError, store.UnreadableJobError, RedisError, ConnectionError) as error:
        raise translation(error) from None


def translation(error: Known) -> FineTuneQueueError:
    """Return the SDK's error for one of the layers below."""
    match error:
        case JobNotFoundError():
            return UnknownJobError(str(error))
        case IdempotencyError():
            return IdempotencyConflictError(str(error))
        case store.UnreadableJobError():
            return UnreadableJobError(str(error))
        case OutOfMemoryError():
            message = "The queue's Redis is full (maxmemory): it takes nothing new until it is given more memory."
            return QueueUnavailableError(message)
        case ResponseError() | AuthenticationError():
            reason = str(error).rstrip(".")
            message = f"The queue's Redis refused a command: {reason}. `finetune doctor` looks for the cause."
            return QueueUnavailableError(message)
        case _:
            reason = str(error).rstrip(".")
            message = f"The queue's Redis is out of reach: {reason}. Check FINETUNE_REDIS_URL and that the server runs."
            return QueueUnavailableError(message)


def whole_id(job_id: object) -> str:
    """Return a job's id as the store has it, whatever its case and the blanks around it.

    Raises:
        UnknownJobError: it is the id of no job that could ever be.
    """
    if not isinstance(job_id, str):
        message = f"A job's id is a text like {_EXAMPLE}, not of the type {type(job_id).__name__}."
        raise UnknownJobError(message)
    found = whole_job_id(job_id)
    if found is None:
        shown = escaped(job_id if len(job_id) <= _SHOWN else f"{job_id[:_SHOWN]}…")
        message = f"'{shown}' is not a complete job id; one looks like {_EXAMPLE}."
        raise UnknownJobError(message)
    return found
