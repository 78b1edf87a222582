"""A claim: one worker's exclusive hold on a job, for as long as it shows signs of life."""

import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from finetune_queue import tracing
from finetune_queue.contract import EventType, JobRecord
from finetune_queue.contract.job import Progress
from finetune_queue.store import Change, JobStore, NotDurableError

_SIGNS_PER_LEASE = 6
"""How many times a stage that reports progress renews its lease within the time of one."""


class CancelRequestedError(Exception):
    """The caller asked to cancel the job while a stage was running."""


class WorkerStoppingError(Exception):
    """This worker is being stopped and has no more time for the stage."""


def seconds_to_deadline(job: JobRecord) -> float:
    """Return the seconds until the caller's deadline, infinity without one."""
    deadline = job.request.deadline
    return math.inf if deadline is None else (deadline - datetime.now(UTC)).total_seconds()


def until_deadline(job: JobRecord, delay: float) -> float:
    """Return ``delay`` seconds, or those that are left until the caller gives up: no job may wait beyond that."""
    return max(0.0, min(delay, seconds_to_deadline(job)))


def _trace(job: JobRecord) -> dict[str, Any]:
    """Return the field that makes this stage's trace the job's, if the job is in no trace yet."""
    current = tracing.traceparent() if job.traceparent is None else None
    return {} if current is None else {"traceparent": current}


class Claim:
    """A claimed job. Every write names the version in hand, so a worker that was overtaken cannot write."""

    def __init__(
        self, store: JobStore, job: JobRecord, owner: str, lease: float, out_of_time: Callable[[], bool]
    ) -> None:
        """Take the job for ``lease`` seconds; each write renews it. ``out_of_time`` tells when the worker must stop.

        Raises:
            ConflictError: somebody else was first.
        """
        self._store = store
        self._out_of_time = out_of_time
        self._lease = lease
        self._last_sign = time.monotonic()
        self._held_until = self._last_sign + lease
        self.on_hold: Callable[[float], None] | None = None
        """Called each time that the hold of the job is renewed, with the seconds that it lasts from then on."""
        self.job = store.transition(job, Change(delay=lease), owner=owner, **_trace(job))

    @property
    def now_ms(self) -> int:
        """The time (ms) of the last write, by the Redis server's clock: behind now by what the stage did since."""
        return self.job.updated_ms

    def write(
        self,
        *,
        event: EventType | None = None,
        durable_within: float | None = None,
        hold: float = 0.0,
        **fields: Any,
    ) -> None:
        """Change fields of the job and keep holding it, for ``hold`` seconds if that is longer than the lease.

        Raises:
            ConflictError: the claim was lost.
            NotDurableError: see :meth:`JobStore.transition`; the change is made.
        """
        if hold:
            hold += self._lease / _SIGNS_PER_LEASE  # so that a `hold` for as long, soon after, needs no write
        began, held = time.monotonic(), max(self._lease, hold)
        try:
            self.job = self._store.transition(
                self.job,
                Change(delay=held),
                event=event,
                durable_within=durable_within,
                **fields,
            )
        except NotDurableError as error:
            self.job = error.job
            raise
        self._last_sign, self._held_until = time.monotonic(), began + held
        if self.on_hold is not None:
            self.on_hold(held)

    def hold(self, seconds: float) -> None:
        """Hold the job for at least ``seconds`` from now, for work that cannot renew the lease meanwhile.

        Raises:
            ConflictError: the claim was lost.
        """
        if time.monotonic() + seconds > self._held_until:
            self.write(hold=seconds)
        elif self.on_hold is not None:
            self.on_hold(seconds)

    def progress(self, done: int, total: int | None) -> None:
        """Give a sign of life and tell how far the stage is; cheap to call often.

        Raises:
            CancelRequestedError: the caller wants the job cancelled.
            WorkerStoppingError: the worker must stop now.
            ConflictError: the claim was lost.
        """
        if self._out_of_time():
            raise WorkerStoppingError
        if time.monotonic() - self._last_sign < min(1.0, self._lease / _SIGNS_PER_LEASE):
            return
        self.write(progress=Progress(done=done, total=total))
        if self._store.get(self.job.id).cancel_requested:
            raise CancelRequestedError
