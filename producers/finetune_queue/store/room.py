"""The order of an account's waiting room: by what the call is for, then the caller's priority, then age."""

from enum import IntEnum

from finetune_queue.contract.job import JobRecord

_AGE_SPAN = 10**13  # more than any time in milliseconds until the year 2286
_CLASS_SPAN = 10 * _AGE_SPAN  # of ten priorities


class CallClass(IntEnum):
    """What goes first in a waiting room: finish what was started before starting more."""

    FINISH = 0  # one call from its weights
    SUBMIT = 1
    PREPARE = 2  # presign an upload


def room_score(call: CallClass, job: JobRecord) -> float:
    """Return the job's place in its account's waiting room; lower goes first. Exact in a double."""
    return float((call * 10 + 9 - job.request.priority) * _AGE_SPAN + job.created_ms)


def room_score_floor(call: CallClass) -> int:
    """Return the lowest score of a class of calls."""
    return call * _CLASS_SPAN


def room_class(score: float) -> tuple[int, int]:
    """Return the lowest score of the class that a score is in, and that of the next one."""
    low = int(score // _CLASS_SPAN) * _CLASS_SPAN
    return low, low + _CLASS_SPAN
