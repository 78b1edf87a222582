"""One write of a job: the arguments of the script that makes a change, and the job as its reply says it is then."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, cast

import redis

from finetune_queue.contract.event import job_event
from finetune_queue.contract.job import JobRecord, JobState, encode_field
from finetune_queue.contract.kinds import EventType
from finetune_queue.store import keys
from finetune_queue.store.accounts import transfers_of
from finetune_queue.store.counters import JOBS_ENTERED, JOBS_FAILED, counter_field
from finetune_queue.store.errors import ConflictError, NotDurableError, OwnedElsewhereError
from finetune_queue.store.feed import STREAM_LENGTH
from finetune_queue.store.room import room_class

_DEFAULTS = {name: field.get_default(call_default_factory=True) for name, field in JobRecord.model_fields.items()}


@dataclass(frozen=True, slots=True)
class Change:
    """What a transition does to the job besides setting fields.

    ``delay`` is after how many seconds to look at the job again if nothing happens; every live job needs one.
    ``room_score`` puts the job into its account's waiting room for API calls, or with ``for_transfer`` into the one for
    transfers; without a score the job leaves both rooms. ``own`` is the id of a training that becomes the job's.
    """

    delay: float | None = None
    room_score: float | None = None
    for_transfer: bool = False
    own: str | None = None


@dataclass(frozen=True, slots=True)
class Write:
    """A write that is ready to be sent: ``names`` and ``text`` are the arguments of :file:`lua/transition.lua`."""

    job: JobRecord
    names: list[str]
    text: str
    entered: bool
    own: str | None

    @classmethod
    def prepare(
        cls,
        job: JobRecord,
        change: Change,
        *,
        previous: JobState | None,
        event: EventType | None,
        fields: Mapping[str, Any],
    ) -> Self:
        """Make the write that brings the job from its ``previous`` state, None for one that is not stored yet, to
        ``job``. ``fields`` are those that differ from what is stored; the state and the event's number are added."""
        entered = job.state != previous
        if event is not None:
            job = job.model_copy(update={"event_seq": job.event_seq + 1})
        fields = {**fields, "state": job.state, "event_seq": job.event_seq}
        counts = [counter_field(JOBS_ENTERED, job.state)] if entered else []
        if entered and job.state is JobState.FAILED and job.error is not None:
            counts.append(counter_field(JOBS_FAILED, job.error.code))
        body = {
            "id": job.id,
            "expect": str(job.version),
            "entered": entered,
            "set": {name: encode_field(value) for name, value in fields.items() if not _implied(name, value)},
            "delete": [name for name, value in fields.items() if _implied(name, value)],
            "delay_ms": None if change.delay is None else max(0, int(change.delay * 1000)),
            "room_score": change.room_score,
            "room_class": None if change.room_score is None else room_class(change.room_score),
            "track": job.tracked,
            "own": change.own,
            "event": None if event is None else job_event(job, event, previous).model_dump_json(),
            "kind": event,
            "notify": any(event in sink.wanted for sink in job.request.sinks) or None,
            "stream_length": STREAM_LENGTH,
            "count": counts or None,
            # Left out where nobody holds the job, before or after.
            "held": bool(job.owner) if job.owner or "owner" in fields else None,
        }
        text = json.dumps({name: value for name, value in body.items() if value is not None})
        return cls(job, _transition_keys(job, previous, change), text, entered, change.own)

    def written(self, reply: Any) -> JobRecord:
        """Return the job as it is stored after the script's reply.

        Raises:
            ConflictError, OwnedElsewhereError: nothing was written.
        """
        code, detail = reply
        if code == 0:
            raise ConflictError(self.job, detail)
        if code == -1:
            raise OwnedElsewhereError(cast("str", self.own), detail)
        times = {"version": self.job.version + 1, "updated_ms": detail}
        if self.entered:
            times["entered_ms"] = detail
        if self.job.version == 0:
            times["created_ms"] = detail
        return self.job.model_copy(update=times)


def _implied(name: str, value: object) -> bool:
    """Tell whether the field need not be stored: ten thousand parked jobs would all keep the same zeros."""
    return value is None or value == _DEFAULTS.get(name)


def _transition_keys(job: JobRecord, previous: JobState | None, change: Change) -> list[str]:
    rooms = [keys.room(job.account), keys.room(transfers_of(job.account))]
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
        keys.running(previous or job.state),
        keys.counters(),
    ]


def check_durable(job: JobRecord, reply: object, replicas: int) -> None:
    """Read the reply to ``WAITAOF`` for the server's own log and that of so many replicas.

    Raises:
        NotDurableError: the write was not confirmed in time.
    """
    match reply:
        case [int(local), int(others)] if local >= 1 and others >= replicas:
            return
        case redis.ResponseError() if _no_log(reply) and replicas == 0:
            return  # a server without a log: what `finetune doctor` and docs/guarantees.md warn of
        case redis.ResponseError() if _no_log(reply):
            raise NotDurableError(job)
        case Exception():
            raise reply
        case _:
            raise NotDurableError(job)


def _no_log(error: redis.ResponseError) -> bool:
    return "appendonly is disabled" in str(error) or "unknown command" in str(error).lower()
