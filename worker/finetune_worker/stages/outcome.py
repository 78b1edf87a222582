"""How a stage ends: a small closed set. Each carries a sentence for people, which Flower shows as the result."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune_queue.contract import JobError, JobState, Stage, WaitReason
from finetune_queue.storage import StorageError, UnavailableError
from finetune_worker.stages.errors import from_storage, from_transfer
from finetune_worker.transfer.errors import NoAnswer, TransferError


@dataclass(frozen=True, slots=True)
class Done:
    """The stage has nothing left to do; the job goes to ``to``, or stays in its state for the next stage. ``own`` is a
    training that is the job's from now on."""

    sentence: str
    to: JobState | None = None
    own: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Wait:
    """The stage cannot go on now, and that is nobody's fault: no attempt is used. ``delay`` in seconds; the rest as in
    :class:`~finetune_queue.store.Change`."""

    sentence: str
    reason: WaitReason
    delay: float
    room_score: float | None = None
    for_transfer: bool = False
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Retry:
    """The stage failed in a way that may pass: it uses an attempt and comes back after a backoff, which is
    longer than the ``asked`` seconds, or after ``after`` seconds. An ``outage`` of a store, of the disk or of Segmind
    ends no job, however long it lasts."""

    error: JobError
    after: float | None = None
    asked: float = 0.0
    outage: bool = False
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fail:
    """The job cannot go on."""

    error: JobError
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Attention:
    """Only a person can say how to go on. ``evidence`` is one more sentence of what is known."""

    sentence: str
    evidence: str


Outcome = Done | Wait | Retry | Fail | Attention

_MAY_COME_BACK = {(Stage.POLL, "not_found"), (Stage.DOWNLOAD, "not_found"), (Stage.DOWNLOAD, "weights_gone")}


def after_error(error: JobError) -> Retry | Fail:
    """Return how a stage ends that met an error: it is tried again if the error may pass. So may a "not found" of a
    training or of weights, which are paid for and have been there before."""
    return Retry(error) if error.retryable or (error.stage, error.code) in _MAY_COME_BACK else Fail(error)


def after_storage(error: StorageError, stage: Stage) -> Retry | Fail:
    """Return how a stage ends whose file the store did not take. An outage uses no attempt, as the weights are paid
    for."""
    found = from_storage(error, stage)
    return Retry(found, outage=True) if isinstance(error, UnavailableError) else after_error(found)


def after_transfer(error: TransferError, stage: str) -> Retry | Fail:
    """Return how a stage ends whose upload or download did not succeed. An outage uses no attempt: the weights are paid
    for. Nor does a download's full disk, as parts pile up there while the artifact store is away, nor a download over a
    bad line that brings more of the weights each time."""
    found = from_transfer(error, stage)
    if not error.retryable:
        return after_error(found)
    full = stage == Stage.DOWNLOAD and error.code == "disk_full"
    outage = isinstance(error, NoAnswer) or error.gained or full
    return Retry(found, asked=error.retry_after or 0.0, outage=outage)
