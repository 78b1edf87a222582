"""The SDK: submit fine-tunes and follow them. Safe in threads; in async code call it with ``asyncio.to_thread``."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from finetune_queue.contract import (
    Event,
    FineTuneRequest,
    JobRecord,
    JobState,
    RequestError,
    WaitReason,
    derived_job_id,
    new_job_id,
    parse_request,
    parse_sink,
)
from finetune_queue.errors import (
    IdempotencyConflictError,
    InvalidRequestError,
    NotPossibleError,
    QueueUnavailableError,
    UnknownAccountNameError,
    UnknownJobError,
    WaitTimeoutError,
)
from finetune_queue.messaging import Messenger, producer_app
from finetune_queue.resuming import adopted, resubmitted, resume_at
from finetune_queue.settings import Settings, load_settings
from finetune_queue.store import (
    Accounts,
    Attempt,
    Change,
    ConflictError,
    IdempotencyError,
    JobNotFoundError,
    JobPages,
    JobStore,
    Outbox,
    OwnedElsewhereError,
    RedisError,
    ResponseError,
    UnknownAccountError,
    connect,
)

FOLLOW_EVERY = 0.25
"""Seconds between two looks of ``wait`` and ``events(follow=True)``."""


class Job:
    """A job as it was when last read, and what can be done with it."""

    def __init__(self, queue: "FineTuneQueue", record: JobRecord) -> None:
        self._queue = queue
        self._record = record

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

        While Redis is out of reach it goes on waiting.

        Raises:
            WaitTimeoutError: the job had not ended after ``timeout`` seconds.
        """
        end = None if timeout is None else time.monotonic() + timeout
        seen = 0
        while True:
            try:
                self.refresh()
                for event in self.events(after=seen):
                    seen += 1
                    if on_event is not None:
                        on_event(event)
                if self.done and seen >= self._record.event_seq:
                    return self
            except QueueUnavailableError:
                if end is None:
                    time.sleep(1.0)
            if end is not None and time.monotonic() >= end:
                message = f"Job {self.id} was still {self.state} after {timeout:g} s. It goes on."
                raise WaitTimeoutError(message)
            time.sleep(FOLLOW_EVERY)

    def cancel(self) -> Self:
        """Stop the job. What was submitted goes on at Segmind, which has no cancel.

        Raises:
            NotPossibleError: the job has ended.
        """
        self._record = self._queue.cancel(self.id).record
        return self

    def retry(self) -> Self:
        """Resume a failed job at the stage that failed; a failed download never trains again.

        Raises:
            NotPossibleError: the job has not failed.
        """
        self._record = self._queue.retry(self.id).record
        return self

    def resolve(self, *, adopt: str | None = None, resubmit: bool = False) -> Self:
        """Say what became of the submit of a job that needs attention, see :meth:`FineTuneQueue.resolve`.

        Raises:
            NotPossibleError: the job does not need attention, or the training is another job's.
        """
        self._record = self._queue.resolve(self.id, adopt=adopt, resubmit=resubmit).record
        return self


class FineTuneQueue:
    """The queue as a producer sees it. Make one and keep it; close it, or use it as a context manager."""

    def __init__(self, settings: Settings) -> None:
        """Connects at the first use."""
        self._settings = settings
        self._redis = connect(settings.finetune_redis_url)
        self._jobs = JobStore(self._redis, retention=settings.finetune_retention)
        self._pages = JobPages(self._redis, self._jobs)
        self._accounts = Accounts(self._redis)
        self._outbox = Outbox(self._redis)
        self._messenger: Messenger | None = None

    @classmethod
    def from_env(cls) -> Self:
        """Make one from the environment, ``.env`` and the secrets folder.

        Raises:
            SettingsError: names every setting that is wrong.
        """
        return cls(load_settings())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def submit(self, request: FineTuneRequest | Mapping[str, Any], *, idempotency_key: str | None = None) -> Job:
        """Put a request on the queue and return its job.

        The job is registered before its message is sent, so a message lost in the broker costs a delay and not the
        job. A local folder or ZIP as ``dataset`` is packed and staged first. The same idempotency key and request
        give the same job.

        Raises:
            InvalidRequestError: the request, or its local dataset, cannot be accepted.
            IdempotencyConflictError: the key was used with another request.
            QueueUnavailableError: Redis is out of reach; submit again with the same key.
        """
        if not isinstance(request, FineTuneRequest):
            try:
                request = parse_request(dict(request))
            except RequestError as error:
                raise InvalidRequestError(error.problems) from None
        if idempotency_key is not None:
            request = request.model_copy(update={"idempotency_key": idempotency_key})
        job_id = derived_job_id(request.account, request.idempotency_key) if request.idempotency_key else new_job_id()
        with _translated():
            request = self._staged(request)
            record, new = self._jobs.register(job_id, request, delay=self._settings.finetune_handover)
            if new:
                self._messages().run(job_id)
        return Job(self, record)

    def get(self, job_id: str) -> Job:
        """Return the job.

        Raises:
            UnknownJobError: there is none with this id.
        """
        with _translated():
            return Job(self, self._jobs.get(job_id))

    def counts(self) -> dict[JobState, int]:
        """Return how many jobs are in each state."""
        with _translated():
            return self._jobs.counts()

    def events(self, job_id: str, *, after: int = 0) -> list[Event]:
        """Return the job's events numbered above ``after``, oldest first."""
        with _translated():
            return self._jobs.events(job_id, after=after)

    def deliveries(self, job_id: str) -> list[Attempt]:
        """Return the latest attempts to deliver the job's events to its sinks, newest first."""
        with _translated():
            return self._outbox.deliveries(self._jobs.get(job_id).id)

    def redeliver(self, job_id: str, *, sink: str | None = None) -> int:
        """Send all of the job's events again, to one sink (its URL, or id) or to all; returns to how many sinks.

        Raises:
            NotPossibleError: no such sink has had any of them.
        """
        with _translated():
            sink_id = parse_sink(sink).id if sink is not None and "://" in sink else sink
            found = self._outbox.redeliver(self._jobs.get(job_id).id, sink_id)
        if not found:
            message = f"No event of job {job_id} was ever delivered to {'that' if sink else 'a'} sink."
            raise NotPossibleError(message)
        return len(found)

    def waiting(self, job: Job) -> "Waiting | None":
        """Tell why the job is not moving, how many are in front of it and about how long that takes; None if it moves.

        Raises:
            UnknownJobError: there is no such job.
        """
        record = job.record
        if record.state.terminal or record.waiting_for is None:
            return None
        with _translated():
            ahead = self._accounts.place(record)
            if ahead is None:
                return Waiting(record.waiting_for, 0, None)
            try:
                account = self._accounts.status(record.account)
            except UnknownAccountError:
                return Waiting(record.waiting_for, ahead, None)
            if account.stopped:
                return Waiting(WaitReason.SPENDING, ahead, None)
            seconds = self._accounts.slot_in(account, ahead)
        return Waiting(WaitReason.PAUSED if account.paused_for else record.waiting_for, ahead, seconds)

    def cancel(self, job_id: str) -> Job:
        """Stop a job, see :meth:`Job.cancel`."""
        with _translated():
            while True:
                record = self._jobs.get(job_id)
                if record.state.terminal:
                    message = f"Job {job_id} is {record.state} already."
                    raise NotPossibleError(message)
                if self._jobs.request_cancel(job_id):
                    return Job(self, self._jobs.get(job_id))
                try:
                    record = self._jobs.transition(
                        record, Change(), to=JobState.CANCELLED, waiting_for=None, error=None
                    )
                except ConflictError:
                    continue
                return Job(self, record)

    def retry(self, job_id: str) -> Job:
        """Resume a failed job, see :meth:`Job.retry`."""
        with _translated():
            record = self._jobs.get(job_id)
            if record.state is not JobState.FAILED or record.failed_stage is None:
                message = f"Only a failed job can be retried; job {job_id} is {record.state}."
                raise NotPossibleError(message)
            to, fields = resume_at(record)
            try:
                record = self._jobs.transition(record, Change(delay=0.0), to=to, **fields)
            except ConflictError as error:
                raise NotPossibleError(str(error)) from None
            return Job(self, record)

    def resolve(self, job_id: str, *, adopt: str | None = None, resubmit: bool = False) -> Job:
        """Say what became of the submit of a job that needs attention: exactly one of the two.

        ``adopt`` names the training that is the job's; the job goes on with it. ``resubmit`` says that there is none;
        a new training is submitted, and paid.

        Raises:
            NotPossibleError: the job does not need attention, or the training is another job's.
        """
        if (adopt is None) is not resubmit:
            message = "resolve takes either adopt or resubmit"
            raise ValueError(message)
        with _translated():
            record = self._jobs.get(job_id)
            if record.state is not JobState.NEEDS_ATTENTION:
                message = f"Only a job that needs attention can be resolved; job {job_id} is {record.state}."
                raise NotPossibleError(message)
            to, fields = resubmitted(record) if adopt is None else adopted(record, adopt)
            try:
                record = self._jobs.transition(record, Change(delay=0.0, own=adopt), to=to, **fields)
            except (ConflictError, OwnedElsewhereError) as error:
                raise NotPossibleError(str(error)) from None
            return Job(self, record)

    def stop_submits(self, account: str, *, stopped: bool = True) -> None:
        """Throw the kill switch of an account's paid submits, or lift it. All else goes on; its jobs wait.

        Raises:
            UnknownAccountNameError: no worker serves the account.
        """
        with _translated():
            try:
                self._accounts.stop_submits(account, stopped=stopped)
            except UnknownAccountError as error:
                raise UnknownAccountNameError(str(error)) from None

    def _messages(self) -> Messenger:
        if self._messenger is None:
            self._messenger = Messenger(producer_app(self._settings))
        return self._messenger

    def _staged(self, request: FineTuneRequest) -> FineTuneRequest:
        if urlsplit(request.dataset).scheme in _URL_SCHEMES:
            return request
        # Imported late: packing needs Pillow, which other producers do not pay for.
        from finetune_queue.staging import stage

        return request.model_copy(update={"dataset": stage(Path(request.dataset), self._settings)})

    def page(
        self,
        *,
        state: JobState | None = None,
        account: str | None = None,
        labels: Mapping[str, str] | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> "Page":
        """Return the newest jobs that match all that is given, ``limit`` at most, and a cursor for those that follow.

        Raises:
            ValueError: ``cursor`` is not one that a page gave.
        """
        with _translated():
            found = self._pages.page(state=state, account=account, labels=labels, limit=limit, cursor=cursor)
        return Page([Job(self, record) for record in found.jobs], found.cursor)

    def list(
        self,
        *,
        state: JobState | None = None,
        account: str | None = None,
        labels: Mapping[str, str] | None = None,
        limit: int = 50,
    ) -> Iterator[Job]:
        """Yield the newest jobs that match all that is given, ``limit`` at most."""
        cursor = None
        while limit > 0:
            page = self.page(state=state, account=account, labels=labels, limit=min(limit, 200), cursor=cursor)
            yield from page.jobs
            limit -= len(page.jobs)
            cursor = page.cursor
            if cursor is None:
                return


@dataclass(frozen=True, slots=True)
class Page:
    """Some jobs, and the cursor of those that follow; None after the last ones. A page may be short before that."""

    jobs: list[Job]
    cursor: str | None


@dataclass(frozen=True, slots=True)
class Waiting:
    """Why a job is not moving; ``estimate`` is in seconds, None where it is not ours to tell."""

    reason: WaitReason
    ahead: int
    estimate: float | None


_URL_SCHEMES = frozenset({"https", "http", "file", "s3", "gs", "az"})


@contextmanager
def _translated() -> Iterator[None]:
    """Raise the SDK's errors for those of the layers below."""
    try:
        yield
    except JobNotFoundError as error:
        raise UnknownJobError(str(error)) from None
    except IdempotencyError as error:
        raise IdempotencyConflictError(str(error)) from None
    except ResponseError as error:
        message = f"The queue's Redis refused a command: {error}. `finetune doctor` looks for the cause."
        raise QueueUnavailableError(message) from None
    except (RedisError, ConnectionError) as error:
        reason = str(error).rstrip(".")
        message = f"The queue's Redis is out of reach: {reason}. Check FINETUNE_REDIS_URL and that the server runs."
        raise QueueUnavailableError(message) from None
