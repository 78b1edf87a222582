"""The queue as a producer sees it: submit requests, find jobs and change them."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Self

from finetune_queue.contract import (
    Event,
    EventType,
    FineTuneRequest,
    JobState,
    Visibility,
    parse_sinks,
)
from finetune_queue.errors import (
    FineTuneQueueError,
    InvalidArgumentError,
    NotPossibleError,
    UnknownAccountNameError,
)
from finetune_queue.messaging import Messenger
from finetune_queue.resuming import resubmitted, resume_at, to_adopt, with_access
from finetune_queue.sdk.arguments import (
    check_count,
    check_filter,
    check_flag,
    check_text,
    sink_named,
    state_named,
)
from finetune_queue.sdk.job import Job, Page, Submission
from finetune_queue.sdk.submitting import Submitter
from finetune_queue.sdk.translation import translated, whole_id
from finetune_queue.sdk.waiting import Waiting, why_waiting
from finetune_queue.settings import Settings, load_settings
from finetune_queue.store import (
    Accounts,
    Attempt,
    Change,
    ConflictError,
    CursorError,
    Deadlines,
    JobPages,
    JobStore,
    Outbox,
    SinkLines,
    SinkWait,
    UnknownAccountError,
    Workers,
    connect,
)


class FineTuneQueue:
    """The queue as a producer sees it. Make one and keep it; close it, or use it as a context manager.

    Every method may raise QueueUnavailableError, when Redis is out of reach. Each that takes a job's id, in any case
    and with blanks around it, may also raise UnknownJobError, when there is no such job, and UnreadableJobError, when a
    newer version wrote it. What else a method may raise is said there.
    """

    def __init__(self, settings: Settings, *, messenger: Messenger | None = None) -> None:
        """Connect to nothing yet. ``messenger`` sends the messages; with None the queue makes one of its own."""
        self._settings = settings
        self._redis = connect(settings.finetune_redis_url)
        self._jobs = JobStore(self._redis)
        self._pages = JobPages(self._redis, self._jobs)
        self._accounts = Accounts(self._redis)
        self._deadlines = Deadlines(self._redis)
        self._outbox = Outbox(self._redis)
        self._sinks = SinkLines(self._redis)
        self._workers = Workers(self._redis)
        self._submitter = Submitter(settings, self._jobs, messenger)

    @classmethod
    def from_env(cls) -> Self:
        """Make one from the environment, ``.env`` and the secrets folder.

        Raises:
            SettingsError: names every setting that is wrong.
        """
        return cls(load_settings())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to Redis. The one for messages stays open: kombu shares it in the whole process, and
        the next queue uses it."""
        self._redis.close()

    def submit(self, request: FineTuneRequest | Mapping[str, Any], *, idempotency_key: str | None = None) -> Job:
        """Put a request on the queue and return its job.

        The job is registered before its message is sent, so a message lost in the broker costs a delay and not the
        job. A local folder or ZIP as ``dataset`` is packed and staged first. The same idempotency key and request
        give the same job; :attr:`Job.new` tells whether this call made it.

        Raises:
            InvalidRequestError: the request, its key, or its local dataset, cannot be accepted.
            IdempotencyConflictError: the key was used with another request.
            UnreadableJobError: the key belongs to a job that a newer version wrote.
            StagingUnavailableError: the staging store did not take the local dataset; submit again.
            QueueUnavailableError: Redis is out of reach; submit again with the same key.
        """
        with translated():
            record, new = self._submitter.submit(request, idempotency_key=idempotency_key)
        return Job(self, record, new=new)

    def submit_many(
        self, requests: Iterable[FineTuneRequest | Mapping[str, Any]], *, batch: str | None = None
    ) -> Iterator[Submission]:
        """Put many requests on the queue and yield what became of each, in their order.

        This is a generator: nothing is submitted until its results are read. It takes requests as it goes and holds at
        most 500 at a time, so ``requests`` may be endless. They are submitted in groups: of 500, or fewer when the next
        request comes after more than a second, or at the end. For requests that come seldom use :meth:`submit`. A
        request that cannot be accepted, or whose idempotency key was used with another one, does not stop the others.

        Each request may carry its own ``idempotency_key``. With ``batch``, a name of 1 to 190 characters, all others
        get one, made of that name and their content (a local dataset's content, too): a repeated call then submits
        only what is not on the queue yet, and equal requests in a batch are one job.

        Raises:
            QueueUnavailableError, StagingUnavailableError: Redis or the staging store is out of reach. What was
                yielded without an error before is on the queue; repeat the call, with the same keys, for the rest.
            InvalidRequestError: the name of the batch is too long, empty, or no text.
        """
        for index, taken in enumerate(self._submitter.submit_many(requests, batch=batch)):
            if isinstance(taken, FineTuneQueueError):
                yield Submission(index, None, new=False, error=taken)
            else:
                record, new = taken
                yield Submission(index, Job(self, record, new=new), new=new)

    def get(self, job_id: str) -> Job:
        """Return the job."""
        with translated():
            return Job(self, self._jobs.get(whole_id(job_id)))

    def counts(self) -> dict[JobState, int]:
        """Return how many jobs are in each state."""
        with translated():
            return self._jobs.counts()

    def workers(self) -> int:
        """Return how many workers have given a sign of life within the last 35 s. Without one no job moves."""
        with translated():
            return len(self._workers.alive())

    def events(self, job_id: str, *, after: int = 0) -> list[Event]:
        """Return the job's events numbered above ``after``, oldest first; none for a job that is not there any more.

        Raises:
            InvalidArgumentError: ``after`` is not a whole number, 0 or more.
        """
        check_count("after", after)
        with translated():
            return self._jobs.events(whole_id(job_id), after=after)

    def deliveries(self, job: Job | str) -> list[Attempt]:
        """Return the latest attempts to deliver the job's events to its sinks, newest first."""
        with translated():
            return self._outbox.deliveries(self._jobs.get(_id_of(job)).id)

    def undelivered(self, job: Job | str) -> list[SinkWait]:
        """Return which of the job's sinks lack events, when each is tried next, and why it was not done yet."""
        job_id = _id_of(job)
        with translated():
            sinks = parse_sinks((*self._settings.finetune_sinks, *self._jobs.get(job_id).request.reply_to))
            return self._sinks.waits(self._outbox.subject(job_id), sinks)

    def redeliver(self, job_id: str, *, sink: str | None = None) -> int:
        """Send all of the job's events again, to one sink (its URL, or id) or to all; returns to how many sinks.

        Raises:
            NotPossibleError: no such sink has had any of them.
            InvalidArgumentError: ``sink`` is no text, or a URL that cannot be one of a sink.
        """
        sink_id = None if sink is None else sink_named(sink)
        with translated():
            found = self._outbox.redeliver(self._jobs.get(whole_id(job_id)).id, sink_id)
        if not found:
            message = f"No event of job {job_id} was ever delivered to {'that' if sink else 'a'} sink."
            raise NotPossibleError(message)
        return len(found)

    def waiting(self, job: Job | str) -> Waiting | None:
        """Tell why the job is not moving, how many are ahead of it and about how long that takes; None if it moves, has
        ended or needs attention. A :class:`Job` is judged as it was last read; by an id, the job is read first."""
        with translated():
            record = job.record if isinstance(job, Job) else self._jobs.get(whole_id(job))
            return why_waiting(record, self._accounts, self._workers, self._deadlines)

    def cancel(self, job_id: str) -> Job:
        """Stop a job, see :meth:`Job.cancel`.

        Raises:
            NotPossibleError: the job has ended.
        """
        job_id = whole_id(job_id)
        with translated():
            while True:
                record = self._jobs.get(job_id)
                if record.state.terminal:
                    message = f"Job {job_id} {record.state.sentence} already."
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
        """Resume a failed job, see :meth:`Job.retry`.

        Raises:
            NotPossibleError: the job has not failed, a change of its model's access is just on its way, or the job
                was just changed by somebody else.
        """
        job_id = whole_id(job_id)
        with translated():
            record = self._jobs.get(job_id)
            if record.state is not JobState.FAILED or record.failed_stage is None:
                message = f"Only a failed job can be retried; job {job_id} {record.state.sentence}."
                raise NotPossibleError(message)
            if record.owner:
                # A retry would end the claim, and with it what keeps a later change of access from overtaking this one.
                message = (
                    f"A change of job {job_id}'s access is on its way to Segmind. Try the retry again in a minute."
                )
                raise NotPossibleError(message)
            to, fields = resume_at(record)
            if record.request.expired(datetime.now(UTC)):  # with it, the next stage would only fail the job again
                without = record.request.model_copy(update={"deadline": None})
                # A repeat of the idempotency key is compared with the request as it came.
                fields = {**fields, "request": without, "digest": record.digest or record.request.digest()}
            try:
                record = self._jobs.transition(record, Change(delay=0.0), to=to, **fields)
            except ConflictError as error:
                raise NotPossibleError(str(error)) from None
            return Job(self, record)

    def set_public(self, job_id: str, public: bool) -> Job:  # noqa: FBT001 - as the API's own field
        """Have the model of an ended job made public or private at Segmind, by one call within the account's budget.

        The job's ``access`` says what is wanted, what Segmind has confirmed and why it did not; ``access`` events tell
        of each step. Asking for the opposite replaces a change that still waits.

        Raises:
            NotPossibleError: the job has not ended, has no training, or a change is just on its way.
            InvalidArgumentError: ``public`` is neither True nor False; the text "no" would publish the model.
        """
        check_flag("public", public)
        wanted = Visibility.PUBLIC if public else Visibility.PRIVATE
        job_id = whole_id(job_id)
        with translated():
            while True:
                record = self._jobs.get(job_id)
                fields = with_access(record, wanted)
                try:
                    record = self._jobs.transition(record, Change(delay=0.0), event=EventType.ACCESS, **fields)
                except ConflictError:
                    continue
                return Job(self, record)

    def resolve(self, job_id: str, *, adopt: str | None = None, resubmit: bool = False) -> Job:
        """Say what became of the submit of a job that needs attention: exactly one of the two.

        ``adopt`` is the id of the job's training. A worker looks at it, and the job goes on with it; if there is no
        such training, or it has another name or dataset, the job needs attention again. ``adopt`` may also be given for
        a job that is about to be submitted and that no worker holds, as after a loss of data. ``resubmit`` says that
        there is no training: a new one is submitted, and charged.

        Raises:
            NotPossibleError: the job needs no such decision, was just changed, or the training is another job's.
            InvalidArgumentError: not exactly one of the two is given, one is of the wrong type, or ``adopt`` is empty.
        """
        check_flag("resubmit", resubmit)
        if (adopt is None) is not resubmit:
            message = "resolve takes either adopt or resubmit"
            raise InvalidArgumentError(message)
        if adopt is not None:
            check_text("adopt", adopt)
            adopt = adopt.strip()
            if not adopt:
                message = "adopt names no training"
                raise InvalidArgumentError(message)
        job_id = whole_id(job_id)
        with translated():
            record = self._jobs.get(job_id)
            submitting = adopt is not None and record.state is JobState.SUBMITTING
            if submitting and (record.owner or record.cancel_requested):
                message = f"A worker has job {job_id} just now. Stop the account's submits and try again."
                raise NotPossibleError(message)
            if not submitting and record.state is not JobState.NEEDS_ATTENTION:
                message = f"Only a job that needs attention can be resolved; job {job_id} {record.state.sentence}."
                raise NotPossibleError(message)
            owner = None if adopt is None else self._jobs.owner_of(adopt)
            if owner not in {None, job_id}:
                message = f"Training {adopt} belongs to job {owner}."
                raise NotPossibleError(message)
            to, fields = resubmitted(record) if adopt is None else to_adopt(record, adopt)
            try:
                record = self._jobs.transition(record, Change(delay=0.0), to=None if submitting else to, **fields)
            except ConflictError as error:
                raise NotPossibleError(str(error)) from None
            return Job(self, record)

    def stop_submits(self, account: str, *, stopped: bool = True) -> None:
        """Stop an account's paid submits, or let them go on. Jobs that are to be submitted wait; all else goes on.

        Raises:
            UnknownAccountNameError: no worker serves the account.
            InvalidArgumentError: ``account`` is no text, or ``stopped`` neither True nor False.
        """
        check_text("account", account)
        check_flag("stopped", stopped)
        with translated():
            try:
                self._accounts.stop_submits(account, stopped=stopped)
            except UnknownAccountError as error:
                raise UnknownAccountNameError(str(error)) from None

    def page(
        self,
        *,
        state: JobState | str | None = None,
        account: str | None = None,
        labels: Mapping[str, str] | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page:
        """Return the newest jobs that match all that is given, ``limit`` at most, and a cursor for those that follow.

        Raises:
            UnknownStateError: ``state`` is the name of none.
            InvalidArgumentError: ``cursor`` is not one that a page gave, ``limit`` not 1 or more, or no job can have
                such an account or labels.
        """
        check_filter(account, labels)
        check_count("limit", limit, least=1)
        if cursor is not None:
            check_text("cursor", cursor)
        chosen = None if state is None else state_named(state)
        with translated():
            try:
                found = self._pages.page(state=chosen, account=account, labels=labels, limit=limit, cursor=cursor)
            except CursorError as error:
                message = f"cursor: {error}"
                raise InvalidArgumentError(message) from None
        return Page([Job(self, record) for record in found.jobs], found.cursor)

    def list(
        self,
        *,
        state: JobState | str | None = None,
        account: str | None = None,
        labels: Mapping[str, str] | None = None,
        limit: int = 50,
    ) -> Iterator[Job]:
        """Return the newest jobs that match all that is given, ``limit`` at most; they are read as they are taken.

        Raises:
            UnknownStateError: ``state`` is the name of none.
            InvalidArgumentError: ``limit`` is not 0 or more, or no job can have such an account or labels.
        """
        check_filter(account, labels)
        check_count("limit", limit)
        return self._listed(None if state is None else state_named(state), account, labels, limit)

    def _listed(
        self, state: JobState | None, account: str | None, labels: Mapping[str, str] | None, limit: int
    ) -> Iterator[Job]:
        cursor = None
        while limit > 0:
            page = self.page(state=state, account=account, labels=labels, limit=min(limit, 200), cursor=cursor)
            yield from page.jobs
            limit -= len(page.jobs)
            cursor = page.cursor
            if cursor is None:
                return


def _id_of(job: Job | str) -> str:
    return job.id if isinstance(job, Job) else whole_id(job)
