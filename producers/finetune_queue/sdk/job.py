"""One job as a producer sees it, and what the other methods of the queue return."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from finetune_queue.contract import Event, JobRecord, JobState, WaitReason
from finetune_queue.errors import FineTuneQueueError, QueueUnavailableError, WaitTimeoutError
from finetune_queue.progress import OnProgress
from finetune_queue.sdk.arguments import check_call, check_flag, check_path, check_seconds

if TYPE_CHECKING:
    from finetune_queue.sdk.queue import FineTuneQueue

FOLLOW_EVERY = 0.25
"""Seconds between two looks of ``wait``, and of the commands that follow a job."""


class Job:
    """A job as it was when last read, and what can be done with it.

    A method that asks the queue may also raise what every method of :class:`FineTuneQueue` may.
    """

    def __init__(self, queue: "FineTuneQueue", record: JobRecord, *, new: bool = False) -> None:
        self._queue = queue
        self._record = record
        self._new = new

    def __repr__(self) -> str:
        return f"<Job {self.id} {self.state}>"

    @property
    def id(self) -> str:
        """The job's id."""
        return self._record.id

    @property
    def state(self) -> JobState:
        """The job's state when it was last read."""
        return self._record.state

    @property
    def new(self) -> bool:
        """Whether the submit that returned it made this job; false for one that was there before, by its idempotency
        key, and for one that was looked up."""
        return self._new

    @property
    def done(self) -> bool:
        """Whether the job has ended, well or not."""
        return self._record.state.terminal

    @property
    def record(self) -> JobRecord:
        """Everything stored of the job."""
        return self._record

    def as_dict(self) -> dict[str, Any]:
        """Return the job as JSON shows it."""
        return self._record.public()

    def refresh(self) -> Self:
        """Read the job again."""
        self._record = self._queue.get(self.id).record
        return self

    def events(self, *, after: int = 0) -> list[Event]:
        """Return the job's events numbered above ``after``, oldest first."""
        return self._queue.events(self.id, after=after)

    def wait(self, timeout: float | None = None, on_event: Callable[[Event], None] | None = None) -> Self:
        """Wait until the job has ended and read it; ``on_event`` is called with each of its events, in order.

        While Redis is out of reach it goes on waiting. What ``on_event`` raises ends the wait.

        Raises:
            WaitTimeoutError: the job had not ended after ``timeout`` seconds.
            InvalidArgumentError: ``timeout`` is not a number of seconds, 0 or more, or ``on_event`` no function.
        """
        check_seconds("timeout", timeout)
        check_call("on_event", on_event)
        end = None if timeout is None else time.monotonic() + timeout
        seen = 0
        while True:
            trouble, news = "", list[Event]()
            try:
                self.refresh()
                news = self.events(after=seen)
            except QueueUnavailableError as error:  # Redis restarts or fails over, and keeps the job
                trouble = f" It has not been seen since: {error}"
            for event in news:
                seen += 1
                if on_event is not None:
                    on_event(event)
            if self.done and seen >= self._record.event_seq:
                return self
            if end is not None and time.monotonic() >= end:
                then = "It waits for a person" if self.state is JobState.NEEDS_ATTENTION else "It goes on"
                trouble = trouble or self._no_taker()
                message = f"Job {self.id} was still {self.state} after {timeout:g} s. {then}.{trouble}"
                raise WaitTimeoutError(message)
            time.sleep(FOLLOW_EVERY)

    def download(
        self,
        target: str | os.PathLike[str] = ".",
        *,
        force: bool = False,
        on_progress: OnProgress | None = None,
    ) -> Path:
        """Copy the job's weights to this machine and return the file, whose length and sha256 are those of the job.

        They are read from where the workers stored them, with this process's own rights and credentials. The file
        appears at once and whole; if it is there already, nothing is done. ``target`` is a file, or a folder, in which
        it is named after the job's id. ``on_progress`` is called with the bytes done and in all.

        Raises:
            InvalidArgumentError: ``target`` is no path, ``force`` neither True nor False, or ``on_progress`` no
                function.
            NotPossibleError: the job has no weights, or none yet.
            WeightsUnavailableError: they are not there any more, or cannot be read from here.
            WeightsDamagedError: what is stored is not what the job stored; nothing is kept.
            TargetError: there is another file, which only ``force`` replaces, or the file cannot be written.
        """
        from finetune_queue.sdk.fetching import fetch_weights  # late: nothing else here needs the storage

        check_path("target", target)
        check_flag("force", force)
        check_call("on_progress", on_progress)
        if self._record.weights is None:
            self.refresh()
        return fetch_weights(self._record, target, force=force, on_progress=on_progress)

    def _no_taker(self) -> str:
        """Say that no worker has the job; empty if one has, or if Redis has just gone away."""
        with suppress(QueueUnavailableError):
            waiting = self._queue.waiting(self)
            if waiting is not None and waiting.no_worker:
                return " No worker is running: it waits until one is started."
            if waiting is not None and waiting.reason is WaitReason.WORKER:
                return " No worker has picked it up yet."
        return ""

    def cancel(self) -> Self:
        """Stop the job. What was submitted goes on at Segmind, which has no cancel.

        Raises:
            NotPossibleError: the job has ended.
        """
        self._record = self._queue.cancel(self.id).record
        return self

    def retry(self) -> Self:
        """Resume a failed job at the stage that failed; a failed download never trains again. A deadline of the request
        that has passed is lifted.

        Raises:
            NotPossibleError: the job has not failed, or was just changed by somebody else.
        """
        self._record = self._queue.retry(self.id).record
        return self

    def set_public(self, public: bool) -> Self:  # noqa: FBT001 - as the API's own field
        """Have the job's model made public or private at Segmind, see :meth:`FineTuneQueue.set_public`.

        Raises:
            NotPossibleError: the job has not ended, has no training, or a change is just on its way.
            InvalidArgumentError: ``public`` is neither True nor False.
        """
        self._record = self._queue.set_public(self.id, public).record
        return self

    def resolve(self, *, adopt: str | None = None, resubmit: bool = False) -> Self:
        """Say what became of the submit of a job that needs attention, see :meth:`FineTuneQueue.resolve`.

        Raises:
            NotPossibleError: the job does not need attention, was just changed, or the training is another job's.
            InvalidArgumentError: not exactly one of the two is given, one is of the wrong type, or ``adopt`` is empty.
        """
        self._record = self._queue.resolve(self.id, adopt=adopt, resubmit=resubmit).record
        return self


@dataclass(frozen=True, slots=True)
class Submission:
    """What became of one request of many: its job, or the error that says why there is none.

    ``index`` is the request's place among those given, from 0. ``new`` is false for a job that was there before, by
    its idempotency key.
    """

    index: int
    job: Job | None
    new: bool
    error: FineTuneQueueError | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Some jobs, and the cursor of those that follow; None after the last ones. A page may be short before that."""

    jobs: list[Job]
    cursor: str | None
