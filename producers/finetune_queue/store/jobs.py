"""The job store: jobs and their events. A job is the truth; a Celery message is only a hint that there is work."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import redis
import structlog
from pydantic import ValidationError

from finetune_queue import tracing
from finetune_queue.contract.event import Event
from finetune_queue.contract.job import TRANSITIONS, JobRecord, JobState
from finetune_queue.contract.kinds import EventType
from finetune_queue.contract.request import FineTuneRequest
from finetune_queue.store import keys, scripts
from finetune_queue.store.errors import ConflictError, IdempotencyError, JobNotFoundError, UnreadableJobError
from finetune_queue.store.write import Change, Write, check_durable

# Through the standard library, as producers may have set up no logging.
log = structlog.wrap_logger(logging.getLogger(__name__))

_PAGE = 200

Registration = tuple[JobRecord, bool] | IdempotencyError | UnreadableJobError | redis.RedisError
"""What came of registering one job of many: the job and whether it is new, or the error. After an error of the
connection the job may have been registered all the same."""


class JobStore:
    """Reads and writes jobs. One instance serves a whole process; it is safe in threads.

    Args:
        client: The Redis that holds the jobs.
        replicas: How many replicas must also have a durable write in their log on disk.
    """

    def __init__(self, client: redis.Redis, *, replicas: int = 0) -> None:
        self._redis = client
        self._replicas = replicas
        self._transition = scripts.load(client, "transition")
        self._request_cancel = scripts.load(client, "request_cancel")

    # reading

    def get(self, job_id: str) -> JobRecord:
        """Return the job.

        Raises:
            JobNotFoundError: there is none with this id.
            UnreadableJobError: only a newer version can read it.
        """
        return self._read(job_id, cast("dict[str, str]", self._redis.hgetall(keys.job(job_id))))

    def get_many(self, job_ids: Sequence[str]) -> list[JobRecord]:
        """Return those of the jobs that exist and can be read, in the order of ``job_ids``."""
        return self.read_many(job_ids)[0]

    def read_many(self, job_ids: Sequence[str]) -> tuple[list[JobRecord], set[str]]:
        """Return those of the jobs that exist, in the order of ``job_ids``, with one round trip a page; and the ids of
        those that only a newer version can read."""
        found: list[JobRecord] = []
        unreadable: set[str] = set()
        for start in range(0, len(job_ids), _PAGE):
            page = job_ids[start : start + _PAGE]
            pipe = self._redis.pipeline(transaction=False)
            for job_id in page:
                pipe.hgetall(keys.job(job_id))
            for job_id, row in zip(page, pipe.execute(), strict=True):
                try:
                    if row:
                        found.append(self._read(job_id, row))
                except UnreadableJobError as error:
                    unreadable.add(job_id)
                    log.warning("job_left_alone", job_id=job_id, detail=str(error))
        return found, unreadable

    @staticmethod
    def _read(job_id: str, fields: dict[str, str]) -> JobRecord:
        if not fields:
            raise JobNotFoundError(job_id)
        try:
            return JobRecord.from_hash(job_id, fields)
        except ValidationError as error:
            # Without the values, which may be anything.
            problem = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
            raise UnreadableJobError(job_id, problem) from None

    def counts(self) -> dict[JobState, int]:
        """Return how many jobs are in each state."""
        pipe = self._redis.pipeline(transaction=False)
        for state in JobState:
            pipe.zcard(keys.state(state))
        return dict(zip(JobState, pipe.execute(), strict=True))

    def tracked(self, account: str) -> Iterator[JobRecord]:
        """Yield the account's jobs that Segmind works on, or may be working on; no more than a page is kept."""
        ids = cast("list[str]", self._redis.zrange(keys.tracked(account), 0, -1))
        for start in range(0, len(ids), _PAGE):
            # One may have ended, or not begun, since its id was read.
            yield from (job for job in self.get_many(ids[start : start + _PAGE]) if job.tracked)

    def owner_of(self, finetune_id: str) -> str | None:
        """Return the id of the job that owns the training."""
        return cast("str | None", self._redis.hget(keys.owners(), finetune_id))

    def events(self, job_id: str, *, after: int = 0) -> list[Event]:
        """Return the job's events numbered above ``after``, oldest first."""
        rows = cast("list[str]", self._redis.lrange(keys.job_events(job_id), after, -1))
        return [Event.model_validate_json(row) for row in rows]

    # new jobs

    def register(self, job_id: str, request: FineTuneRequest, *, delay: float) -> tuple[JobRecord, bool]:
        """Create the job in state accepted, or return the one that is there. The flag tells whether it is new.

        Raises:
            IdempotencyError: a job with this id has another request.
            UnreadableJobError: a job with this id is there, and only a newer version can read it.
        """
        [outcome] = self.register_many([(job_id, request)], delay=delay)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def register_many(
        self, wanted: Sequence[tuple[str, FineTuneRequest]], *, delay: float, traces: Mapping[str, str] | None = None
    ) -> list[Registration]:
        """Do what :meth:`register` does for many jobs in one round trip. Errors are returned, in the place of their
        job, so that what is known of the others is not lost. ``traces`` has the ``traceparent`` of each new job; with
        None, all get that of the current span.
        """
        current = tracing.traceparent() if traces is None else None
        writes = [self._new(job_id, request, delay, (traces or {}).get(job_id, current)) for job_id, request in wanted]
        outcomes: dict[int, Registration] = {}
        while left := [index for index in range(len(writes)) if index not in outcomes]:
            outcomes |= self._create({index: writes[index] for index in left})
        return [outcomes[index] for index in range(len(writes))]

    def _new(self, job_id: str, request: FineTuneRequest, delay: float, traceparent: str | None) -> Write:
        job = JobRecord(id=job_id, state=JobState.ACCEPTED, request=request, traceparent=traceparent)
        fields = {"request": request, "traceparent": traceparent}
        return Write.prepare(job, Change(delay=delay), previous=None, event=EventType.ACCEPTED, fields=fields)

    def _create(self, writes: Mapping[int, Write]) -> dict[int, Registration]:
        """Send the writes of new jobs and return what came of each, by its index. Left out, to be sent again, is one
        whose job was already there but was removed, at the end of its retention, before it could be read.
        """
        found: dict[int, Registration] = {}
        there: dict[int, Write] = {}
        pipe = self._redis.pipeline(transaction=False)
        for (index, write), reply in zip(writes.items(), self._send(list(writes.values())), strict=True):
            if isinstance(reply, redis.RedisError):
                found[index] = reply
                continue
            try:
                found[index] = write.written(reply), True
            except ConflictError:
                there[index] = write
        for write in there.values():
            pipe.hgetall(keys.job(write.job.id))
        for (index, write), reply in zip(there.items(), _replies(pipe, len(there)), strict=True):
            if isinstance(reply, redis.RedisError):
                found[index] = reply
            elif reply:
                try:
                    job = self._read(write.job.id, reply)
                except UnreadableJobError as error:
                    found[index] = error
                else:
                    same = (job.digest or job.request.digest()) == write.job.request.digest()
                    found[index] = (job, False) if same else IdempotencyError(job.id)
        return found

    def _send(self, writes: list[Write]) -> list[Any]:
        """Return the script's reply to each of the writes, errors as values."""
        if len(writes) == 1:  # a pipeline would first ask the server whether it has the script
            try:
                return [self._transition(writes[0].names, [writes[0].text])]
            except redis.RedisError as error:
                return [error]
        pipe = self._redis.pipeline(transaction=False)
        for write in writes:
            self._transition(write.names, [write.text], client=pipe)
        return _replies(pipe, len(writes))

    # changes

    def transition(
        self,
        job: JobRecord,
        change: Change,
        *,
        to: JobState | None = None,
        event: EventType | None = None,
        durable_within: float | None = None,
        **fields: Any,
    ) -> JobRecord:
        """Change the job if it is still at the version of ``job``: all of the change is made, or none of it.

        ``to`` is the next state, which makes an event by itself; ``event`` makes one within a state. ``fields`` are
        fields of :class:`JobRecord`; None removes one. With ``durable_within`` Redis has to confirm within so many
        seconds that the change is in its log on disk (``WAITAOF``), where it keeps one.

        Raises:
            ConflictError: the job changed meanwhile; nothing was changed.
            OwnedElsewhereError: ``change.own`` is another job's training; nothing was changed.
            NotDurableError: the change was made, but not confirmed to be on disk.
        """
        state = to or job.state
        if to is not None and to not in TRANSITIONS[job.state]:
            message = f"a job cannot go from {job.state} to {to}"
            raise ValueError(message)
        changed = job.model_copy(update={**fields, "state": state})
        if changed.wants_access and change.delay is None:
            change = replace(change, delay=0.0)  # asked for before a retry, and due now that the job has ended again
        if not changed.settled and change.delay is None:
            message = f"a live job needs a deadline (job {job.id}, {state})"
            raise ValueError(message)
        if changed.settled and (change.delay is not None or change.room_score is not None):
            message = f"an ended job waits for nothing (job {job.id}, {state})"
            raise ValueError(message)
        kind = EventType(state) if to is not None else event
        write = Write.prepare(changed, change, previous=job.state, event=kind, fields=fields)
        return self._write(write, durable_within)

    def _write(self, write: Write, durable_within: float | None) -> JobRecord:
        if durable_within is None:
            return write.written(self._transition(write.names, [write.text]))
        # WAITAOF waits for the writes of its own connection alone, so it goes with the script in one pipeline.
        pipe = self._redis.pipeline(transaction=False)
        self._transition(write.names, [write.text], client=pipe)
        pipe.waitaof(1, self._replicas, int(durable_within * 1000))
        replies = pipe.execute(raise_on_error=False)
        if isinstance(replies[0], Exception):
            raise replies[0]
        job = write.written(replies[0])
        check_durable(job, replies[1], self._replicas)
        return job

    def request_cancel(self, job_id: str) -> bool:
        """Ask the worker that holds the job to cancel it; False when nobody holds it.

        Raises:
            JobNotFoundError: there is no such job.
        """
        answer = self._request_cancel([keys.job(job_id)], [])
        if answer == -1:
            raise JobNotFoundError(job_id)
        return bool(answer)

    # the presigned upload, apart from the job's record: it is a secret

    def save_upload_url(self, job_id: str, presigned: str, seconds: float) -> None:
        """Keep the job's presigned upload, a JSON text, for so many seconds."""
        self._redis.set(keys.upload_url(job_id), presigned, px=max(1, int(seconds * 1000)))

    def upload_url(self, job_id: str) -> str | None:
        """Return the presigned upload that is kept, None if there is none or it has expired."""
        return cast("str | None", self._redis.get(keys.upload_url(job_id)))

    def drop_upload_url(self, job_id: str) -> None:
        """Forget the presigned upload: it was used, or refused."""
        self._redis.delete(keys.upload_url(job_id))


def _replies(pipe: "redis.client.Pipeline", count: int) -> list[Any]:
    """Return what Redis said to each of the pipeline's commands, errors as values; if the connection is lost, that."""
    if not count:
        return []
    try:
        return pipe.execute(raise_on_error=False)
    except redis.RedisError as error:
        return [error] * count
