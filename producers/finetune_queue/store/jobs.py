"""The job store: jobs and their events. A job is the truth; a Celery message is only a hint that there is work."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import redis

from finetune_queue.contract.event import Event, job_event, rejected_event
from finetune_queue.contract.job import TRANSITIONS, JobRecord, JobState, encode_field
from finetune_queue.contract.kinds import EventType
from finetune_queue.contract.request import FineTuneRequest
from finetune_queue.store import keys, scripts
from finetune_queue.store.accounts import transfer_line
from finetune_queue.store.dead_letters import RawMessage, TaskCall, packed
from finetune_queue.store.outbox import Outbox

_PAGE = 200


class StoreError(Exception):
    """The base of what the store raises itself; trouble with the connection stays a ``redis.RedisError``."""


class JobNotFoundError(StoreError):
    """There is no job with this id."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"There is no job {job_id}. It never existed, or finished and was kept its time.")
        self.job_id = job_id


class ConflictError(StoreError):
    """The job changed since it was read: somebody else acts on it, and this write was refused (fencing)."""

    def __init__(self, job: JobRecord, current: str) -> None:
        super().__init__(f"Job {job.id} is at version {current or 'none'}, not {job.version}: the write was refused.")
        self.job = job


class IdempotencyError(StoreError):
    """The same idempotency key came with another request."""

    def __init__(self, job_id: str) -> None:
        super().__init__(
            f"The idempotency key belongs to job {job_id}, which was submitted with another request. "
            "Use a new key for a new request."
        )
        self.job_id = job_id


class OwnedElsewhereError(StoreError):
    """Another job already owns this training."""

    def __init__(self, finetune_id: str, owner: str) -> None:
        super().__init__(f"Training {finetune_id} belongs to job {owner}.")
        self.finetune_id = finetune_id
        self.owner = owner


class NotDurableError(StoreError):
    """Redis did not confirm in time that a write is in its log on disk. ``job`` is the job with the write."""

    def __init__(self, job: JobRecord) -> None:
        super().__init__("Redis did not confirm in time that the change is in its append-only log.")
        self.job = job


@dataclass(frozen=True, slots=True)
class Change:
    """What a transition does besides the fields.

    ``delay`` is when to look at the job again if nothing happens, seconds from now; every live job needs one.
    ``room_score`` puts it into its account's waiting room for API calls, or with ``for_transfer`` into that for
    transfers; without one it leaves both. ``own`` claims a training.
    """

    delay: float | None = None
    room_score: float | None = None
    for_transfer: bool = False
    own: str | None = None


class JobStore:
    """Reads and writes jobs. One instance serves a whole process; it is safe in threads."""

    def __init__(self, client: redis.Redis, *, retention: float, stream_length: int = 100_000) -> None:
        """``retention`` is how long finished jobs are kept, in seconds; ``stream_length`` about how many events."""
        self._redis = client
        self._retention_ms = int(retention * 1000)
        self._stream_length = stream_length
        self._transition = scripts.load(client, "transition")
        self._request_cancel = scripts.load(client, "request_cancel")
        self._forget = scripts.load(client, "forget")
        self._outbox = Outbox(client)

    # reading

    def get(self, job_id: str) -> JobRecord:
        """Return the job.

        Raises:
            JobNotFoundError: there is none with this id.
        """
        return self._read(job_id, cast("dict[str, str]", self._redis.hgetall(keys.job(job_id))))

    def get_many(self, job_ids: Sequence[str]) -> list[JobRecord]:
        """Return those of the jobs that exist, in the order of ``job_ids``, with one round trip a page."""
        found: list[JobRecord] = []
        for start in range(0, len(job_ids), _PAGE):
            page = job_ids[start : start + _PAGE]
            pipe = self._redis.pipeline(transaction=False)
            for job_id in page:
                pipe.hgetall(keys.job(job_id))
            found += [self._read(job_id, row) for job_id, row in zip(page, pipe.execute(), strict=True) if row]
        return found

    @staticmethod
    def _read(job_id: str, fields: dict[str, str]) -> JobRecord:
        if not fields:
            raise JobNotFoundError(job_id)
        return JobRecord.from_hash(fields)

    def newest(self, *, state: JobState | None = None) -> Iterator[JobRecord]:
        """Yield jobs, newest first: all of them by creation, or those in a state by when they entered it."""
        index = keys.jobs() if state is None else keys.state(state)
        start = 0
        while page := cast("list[str]", self._redis.zrevrange(index, start, start + _PAGE - 1)):
            yield from self.get_many(page)
            start += _PAGE

    def counts(self) -> dict[JobState, int]:
        """Return how many jobs are in each state."""
        pipe = self._redis.pipeline(transaction=False)
        for state in JobState:
            pipe.zcard(keys.state(state))
        return dict(zip(JobState, pipe.execute(), strict=True))

    def tracked(self, account: str) -> list[JobRecord]:
        """Return the account's jobs that Segmind works on, or may be working on."""
        found = self.get_many(cast("list[str]", self._redis.zrange(keys.tracked(account), 0, -1)))
        return [job for job in found if job.tracked]  # one may have ended, or not begun, since its id was read

    def owner_of(self, finetune_id: str) -> str | None:
        """Return the id of the job that owns the training."""
        return cast("str | None", self._redis.hget(keys.owners(), finetune_id))

    def events(self, job_id: str, *, after: int = 0) -> list[Event]:
        """Return the job's events numbered above ``after``, oldest first."""
        rows = cast("list[str]", self._redis.lrange(keys.job_events(job_id), after, -1))
        return [Event.model_validate_json(row) for row in rows]

    # writing

    def register(self, job_id: str, request: FineTuneRequest, *, delay: float) -> tuple[JobRecord, bool]:
        """Create the job in state accepted, or return the one that is there. The flag tells whether it is new.

        Raises:
            IdempotencyError: a job with this id has another request.
        """
        job = JobRecord(id=job_id, state=JobState.ACCEPTED, request=request, digest=request.digest())
        try:
            return self._write(job, Change(delay=delay), entered=True, previous=None, event=EventType.ACCEPTED), True
        except ConflictError:
            existing = self.get(job_id)
            if existing.digest != job.digest:
                raise IdempotencyError(job_id) from None
            return existing, False

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
        """Change the job from exactly the version in hand: all of it, or nothing.

        ``to`` is the next state, which makes an event by itself; ``event`` tells of something within a state.
        ``fields`` are fields of :class:`JobRecord`; None removes one. ``durable_within`` seconds asks Redis to confirm
        that the change is in its log on disk (``WAITAOF``), where it keeps one.

        Raises:
            ConflictError: the job changed meanwhile.
            OwnedElsewhereError: ``change.own`` is another job's training.
            NotDurableError: the change is made, but not confirmed to be on disk.
        """
        state = to or job.state
        if to is not None and to not in TRANSITIONS[job.state]:
            message = f"a job cannot go from {job.state} to {to}"
            raise ValueError(message)
        if not state.terminal and change.delay is None:
            message = f"a live job needs a deadline (job {job.id}, {state})"
            raise ValueError(message)
        if state.terminal and (change.delay is not None or change.room_score is not None):
            message = f"an ended job waits for nothing (job {job.id}, {state})"
            raise ValueError(message)
        changed = job.model_copy(update={**fields, "state": state})
        kind = EventType(state) if to is not None else event
        return self._write(
            changed,
            change,
            entered=to is not None,
            previous=job.state,
            event=kind,
            fields=fields,
            durable_within=durable_within,
        )

    def _write(
        self,
        job: JobRecord,
        change: Change,
        *,
        entered: bool,
        previous: JobState | None,
        event: EventType | None,
        fields: dict[str, Any] | None = None,
        durable_within: float | None = None,
    ) -> JobRecord:
        if event is not None:
            job = job.model_copy(update={"event_seq": job.event_seq + 1})
        if fields is None:
            fields = {"id": job.id, "request": job.request, "digest": job.digest, "owner": ""}
        fields = {**fields, "state": job.state, "event_seq": job.event_seq}
        body = {
            "id": job.id,
            "expect": str(job.version),
            "entered": entered,
            "set": {name: encode_field(value) for name, value in fields.items() if value is not None},
            "delete": [name for name, value in fields.items() if value is None],
            "delay_ms": None if change.delay is None else max(0, int(change.delay * 1000)),
            "room_score": change.room_score,
            "track": job.tracked,
            "own": change.own,
            "event": None if event is None else job_event(job, event, previous).model_dump_json(),
            "kind": event,
            "notify": any(event in sink.wanted for sink in job.request.sinks) or None,
            "stream_length": self._stream_length,
        }
        body = {name: value for name, value in body.items() if value is not None}
        names = _transition_keys(job, previous, change)
        # WAITAOF speaks of its own connection's writes, so it has to go with the script, in one pipeline.
        pipe = self._redis.pipeline(transaction=False)
        self._transition(names, [json.dumps(body)], client=pipe)
        if durable_within is not None:
            pipe.waitaof(1, 0, int(durable_within * 1000))
        replies = pipe.execute(raise_on_error=False)
        if isinstance(replies[0], Exception):
            raise replies[0]
        code, detail = replies[0]
        if code == 0:
            raise ConflictError(job, detail)
        if code == -1:
            raise OwnedElsewhereError(cast("str", change.own), detail)
        times = {"version": job.version + 1, "updated_ms": detail}
        if entered:
            times["entered_ms"] = detail
        if previous is None:
            times["created_ms"] = detail
        job = job.model_copy(update=times)
        if durable_within is not None:
            _check_durable(job, replies[1])
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

    def reject(self, message_id: str, message: TaskCall | RawMessage, reason: str, problems: list[str]) -> None:
        """Set aside a message that cannot become a job, as it came, and tell of it by an event."""
        pipe = self._redis.pipeline(transaction=True)
        about = {"kind": "message", "message_id": message_id, "reason": reason, "problems": json.dumps(problems)}
        letter: dict[Any, Any] = {**about, **packed(message)}
        pipe.xadd(keys.dead_letters(), letter, maxlen=self._stream_length)
        event = rejected_event(message_id, reason, problems)
        text = event.model_dump_json()
        pipe.xadd(keys.events(), {"event": text}, maxlen=self._stream_length)
        pipe.execute()
        if self._outbox.wants(event.kind):
            self._outbox.send_loose(event.id, [text])

    def save_upload_url(self, job_id: str, presigned: str, seconds: float) -> None:
        """Keep a presigned upload for as long as it is valid, apart from the job: it is a secret."""
        self._redis.set(keys.upload_url(job_id), presigned, px=max(1, int(seconds * 1000)))

    def upload_url(self, job_id: str) -> str | None:
        """Return the presigned upload that is still valid."""
        return cast("str | None", self._redis.get(keys.upload_url(job_id)))

    def drop_upload_url(self, job_id: str) -> None:
        """Forget the presigned upload: it was used, or refused."""
        self._redis.delete(keys.upload_url(job_id))

    def forget_finished(self, limit: int = _PAGE) -> int:
        """Remove finished jobs whose retention is over, ``limit`` of each kind at most; returns how many.

        Events in the stream and dead letters go after the same time. It takes no memory, so it works on a full server.
        """
        seconds, _ = self._redis.time()
        oldest = seconds * 1000 - self._retention_ms
        gone = 0
        for state in JobState:
            if not state.terminal:
                continue
            ids = cast("list[str]", self._redis.zrangebyscore(keys.state(state), "-inf", oldest, start=0, num=limit))
            for job in self.get_many(ids):
                names = [
                    *(keys.job(job.id), keys.job_events(job.id), keys.jobs(), keys.state(state), keys.owners()),
                    *(keys.outbox(), keys.job_sinks(job.id), keys.deliveries(job.id)),
                ]
                trainings = [*job.ruled_out, *([] if job.finetune_id is None else [job.finetune_id])]
                gone += self._forget(names, [job.id, job.version, *trainings])
        for stream in (keys.events(), keys.dead_letters()):
            self._redis.xtrim(stream, minid=f"{max(0, oldest)}-0", approximate=True)
        return gone


def _transition_keys(job: JobRecord, previous: JobState | None, change: Change) -> list[str]:
    rooms = [keys.room(job.account), keys.room(transfer_line(job.account))]
    if change.for_transfer:
        rooms.reverse()
    return [
        keys.job(job.id),
        keys.job_events(job.id),
        keys.jobs(),
        keys.state(previous or job.state),
        keys.state(job.state),
        keys.deadlines(),
        keys.wake(),
        keys.events(),
        keys.owners(),
        rooms[0],
        keys.tracked(job.account),
        rooms[1],
        keys.outbox(),
        keys.sink_kinds(),
        keys.wake_outbox(),
    ]


def _check_durable(job: JobRecord, reply: object) -> None:
    match reply:
        case [int(local), int()] if local >= 1:
            return
        case redis.ResponseError() if "appendonly is disabled" in str(reply) or "unknown command" in str(reply).lower():
            return  # a server without a log: what `finetune doctor` and docs/guarantees.md warn of
        case Exception():
            raise reply
        case _:
            raise NotDurableError(job)
