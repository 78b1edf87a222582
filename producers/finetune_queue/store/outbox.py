"""The outbox: the jobs with events that their sinks do not have yet, and the lines in which these jobs wait.

The script that writes an event also puts its job into the outbox. A notifier moves the job from there into the lines of
its sinks. A worker that takes a line holds it alone, so the events of a job reach a sink in order. The hold is the
line's score, moved into the future; every write names this score, so a worker whose line was taken over cannot write
(fencing). How many of a job's events each sink has is kept with the job. It is written after the delivery: a worker
that dies between the two causes a repeat, never a loss.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, cast

import redis

from finetune_queue.contract import Event, EventType, Sink, SinkKind
from finetune_queue.contract.job import iso_time
from finetune_queue.store import keys, scripts
from finetune_queue.store.clock import server_ms
from finetune_queue.store.dead_letters import MOST_LETTERS, DeadLetter

LOG_LENGTH = 50
"""How many attempts of a job's deliveries are kept."""

MOST_PUT_OFF = 500
"""How many sinks of a line that did not answer are remembered; of more, those that have the longest to wait."""

_OF_THE_SERVICE = tuple(f"{kind}://" for kind in (SinkKind.CELERY, SinkKind.STREAM, SinkKind.LIST))
"""The prefixes of lines whose sinks are in this service's own Redis or broker."""


class HoldLostError(Exception):
    """The line was taken over: this worker stood still for longer than its lease."""


class SetBackError(Exception):
    """Somebody asked for the sink's events to be delivered again: what there is to deliver has to be read anew."""


@dataclass(frozen=True, slots=True)
class PutOff:
    """A sink that did not answer, while others of its origin may: how often in a row, since when (ms), why, and to an
    event of which job the last time. It is not tried again before ``until_ms``."""

    sink: str
    failures: int
    since_ms: int
    until_ms: int
    reason: str
    job_id: str


class Standing(StrEnum):
    """What is known of the place that a line leads to."""

    GOOD = "good"
    NEW = "new"  # nobody there ever answered; a caller can name any number of such places
    DOUBTFUL = "doubtful"  # a sink there may hang, as it did before


@dataclass(slots=True)
class Hold:
    """A line that this worker holds, until ``until`` (ms), which every attempt prolongs. ``failures`` counts the
    attempts in a row to which no sink of the line answered; ``put_off`` are the sinks that did not, by their ids."""

    line: str
    until: int
    failures: int = 0
    put_off: dict[str, PutOff] = field(default_factory=dict)
    standing: Standing = Standing.GOOD

    @property
    def origin(self) -> str:
        """Where its sinks are; several lines may lead there."""
        return line_origin(self.line)


@dataclass(frozen=True, slots=True)
class Subject:
    """What there is to deliver: the events of one job, or events without a job, in order, and how far each sink is.

    ``reached`` has for each sink's id how many of the events it has, ``notes`` the other numbers and times (ms) that
    :func:`keys.job_sinks` names. ``only`` is the URL of the one sink that events without a job are for, None if they
    are for the service's own.
    """

    id: str
    reached: dict[str, int]
    notes: Mapping[str, int]
    only: str | None
    events: Sequence[str]

    def after(self, sink: Sink) -> int:
        """Return how many of the events the sink has."""
        return self.reached.get(sink.id, 0)

    def gone(self, sink: Sink) -> bool:
        """Tell whether the sink said that it wants no more of the events."""
        return f"{sink.id}:gone" in self.notes

    def wanted(self, sink: Sink) -> list[tuple[int, Event, str]]:
        """Return the events that the sink wants and does not have yet, each with its number and its text."""
        if self.gone(sink):
            return []
        rest = list(enumerate(self.events, 1))[self.after(sink) :]
        read = [(place, Event.model_validate_json(text), text) for place, text in rest]
        return [found for found in read if sink.wants(found[1].kind)]

    def rests_until(self, sink: Sink) -> int:
        """Return until when (ms) the sink is not asked to take the event that it refused."""
        return self.notes.get(f"{sink.id}:next", 0)

    def since(self, sink: Sink, line: str) -> int | None:
        """Return since when (ms) the sink's next event has been waiting, None if nothing is known of that. Not from
        before the sink took another event or a redelivery: the job may be in the line because of another sink."""
        names = (f"line:{line}", f"{sink.id}:at", f"{sink.id}:again")
        known = [self.notes[name] for name in names if name in self.notes]
        return self.notes.get(f"{sink.id}:since", max(known, default=None))


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt to deliver an event, as the log keeps it. ``outcome``: delivered, failed or dead."""

    event_id: str
    sink: str
    sink_id: str
    outcome: str
    at_ms: int
    took_ms: int
    status: int | None = None
    detail: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON shows it."""
        body = {"time": iso_time(self.at_ms), "event": self.event_id, "sink": self.sink, "sink_id": self.sink_id}
        rest = {"outcome": self.outcome, "status": self.status, "took_ms": self.took_ms, "detail": self.detail}
        return body | {name: value for name, value in rest.items() if value not in (None, "")}


class Outbox:
    """Moves events towards the sinks. One instance serves a whole process; it is safe in threads."""

    def __init__(self, client: redis.Redis) -> None:
        """``client`` must wait longer for a reply than :meth:`wait_for_work` is asked to sleep."""
        self._redis = client
        self._take = scripts.load(client, "take")
        self._line_up = scripts.load(client, "line_up")
        self._attempt = scripts.load(client, "attempt")
        self._leave = scripts.load(client, "leave")
        self._pass_over = scripts.load(client, "pass_over")
        self._settle = scripts.load(client, "settle")

    # which events go out

    def announce(self, sinks: Iterable[Sink]) -> None:
        """Have the events that the service's own sinks want put their jobs into the outbox. A kind is never taken back:
        one that no sink wants any more costs a look, one that another worker's sink still wants would be lost."""
        wanted = sorted({kind for sink in sinks for kind in sink.wanted})
        if wanted:
            self._redis.sadd(keys.sink_kinds(), *wanted)

    def wait_for_work(self, seconds: float) -> None:
        """Sleep until a notifier is wanted, or for ``seconds``."""
        self._redis.blpop([keys.wake_outbox()], timeout=max(seconds, 0.001))

    def take(self, limit: int, lease: float) -> tuple[list[str], float | None]:
        """Take up to ``limit`` jobs with news; nobody else gets them for ``lease`` seconds.

        Returns their ids and the seconds until the next is due, None without one.
        """
        ids, _, wait = self._taken(keys.outbox(), limit, lease)
        return ids, wait

    def line_up(self, job_id: str, sinks: Iterable[Sink]) -> None:
        """Move a job from the outbox into the lines of its sinks; one without sinks only leaves the outbox."""
        lines = Counter(sink.line(job_id) for sink in sinks)
        pairs = [key for name in lines for key in (keys.line(name), keys.line_state(name))]
        own = [keys.job_sinks(job_id), keys.job(job_id), keys.job_events(job_id)]
        counts = [value for pair in lines.items() for value in pair]
        self._line_up([keys.outbox(), keys.lines(), *own, *pairs], [job_id, *counts])

    def _taken(self, key: str, limit: int, lease: float) -> tuple[list[str], int, float | None]:
        wait, score, *taken = self._take([key], [limit, int(lease * 1000)])
        return taken[::2], int(score), None if int(wait) < 0 else int(wait) / 1000

    # a line

    def take_lines(self, limit: int, lease: float) -> tuple[list[Hold], float | None]:
        """Take up to ``limit`` lines that are due, each for ``lease`` seconds from its last attempt on; also returns
        the seconds until the next is due."""
        names, score, wait = self._taken(keys.lines(), limit, lease)
        pipe = self._redis.pipeline(transaction=False)
        for name in names:
            pipe.hget(keys.line_state(name), "failures")
            pipe.hgetall(keys.put_off(name))
            pipe.zscore(keys.reached(), line_origin(name))
        replies = pipe.execute()
        now = score - int(lease * 1000)
        holds = []
        for name, count, rows, reached in zip(names, replies[::3], replies[1::3], replies[2::3], strict=True):
            failures, put_off = int(count or 0), read_put_off(rows)
            standing = Standing.GOOD
            if failures > 0 or any(each.until_ms <= now for each in put_off.values()):
                standing = Standing.DOUBTFUL
            elif reached is None and not name.startswith(_OF_THE_SERVICE):
                standing = Standing.NEW
            holds.append(Hold(name, score, failures, put_off, standing))
        return holds, wait

    def waiting(self, hold: Hold, limit: int, *, due: bool) -> list[str]:
        """Return the ids of the line's first ``limit`` jobs; with ``due`` only of those that are due now."""
        now = server_ms(self._redis) if due else "+inf"
        ids = self._redis.zrangebyscore(keys.line(hold.line), "-inf", now, start=0, num=limit)
        return cast("list[str]", ids)

    def subject(self, subject_id: str) -> Subject:
        """Read what there is to deliver of a job."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.hgetall(keys.job_sinks(subject_id))
        pipe.lrange(keys.job_events(subject_id), 0, -1)
        fields, events = pipe.execute()
        return _subject(subject_id, fields, events)

    def subjects_without_events(self, subject_ids: Sequence[str]) -> list[Subject]:
        """Read how far the sinks of these jobs are, in one round trip."""
        pipe = self._redis.pipeline(transaction=False)
        for subject_id in subject_ids:
            pipe.hgetall(keys.job_sinks(subject_id))
        return [_subject(name, fields, ()) for name, fields in zip(subject_ids, pipe.execute(), strict=True)]

    def attempted(
        self,
        hold: Hold,
        subject_id: str,
        attempt: Attempt,
        *,
        before: int,
        after: int,
        lease: float,
        dead: DeadLetter | None = None,
        gone: bool = False,
    ) -> int:
        """Record an attempt, and that the sink now has ``after`` of the events, where it had ``before``; if the two are
        equal, the attempt failed. In the same step ``dead`` adds a dead letter, and ``gone`` notes that the sink wants
        no more of them. Returns how often in a row the sink failed for this job.

        Raises:
            HoldLostError: the line is somebody else's now; nothing was written.
            SetBackError: somebody asked for all events again; only the log has the attempt.
        """
        names = [keys.lines(), keys.job_sinks(subject_id), keys.deliveries(subject_id), keys.dead_letters()]
        letter = [text for pair in (dead.fields() if dead else {}).items() for text in pair]
        args = [hold.line, hold.until, int(lease * 1000), attempt.sink_id, before, after, _written(attempt), LOG_LENGTH]
        reply = self._attempt(names, [*args, MOST_LETTERS, int(gone), *letter])
        if reply[0] == 0:
            raise HoldLostError(hold.line)
        if reply[0] == -1:
            raise SetBackError(subject_id)
        hold.until = int(reply[1])
        return int(reply[2])

    def rest(self, subject_id: str, sink: Sink, until_ms: int) -> None:
        """Note until when (ms) a sink that refused a job's event is not asked to take it again."""
        self._redis.hset(keys.job_sinks(subject_id), f"{sink.id}:next", until_ms)

    def leave(self, hold: Hold, subject: Subject, sinks: Iterable[Sink], *, delay: float | None = None) -> None:
        """Take the job out of the line if its ``sinks`` have all events that they want; or put it off within the line
        by ``delay`` seconds.

        Raises:
            HoldLostError: the line is somebody else's now.
        """
        names = [
            *(keys.lines(), keys.line(hold.line), keys.job_sinks(subject.id), keys.job_events(subject.id)),
            *(keys.job(subject.id), keys.deliveries(subject.id)),
        ]
        pairs = [value for sink in sinks for value in (sink.id, subject.after(sink))]
        put_off = "" if delay is None else int(delay * 1000)
        if not self._leave(names, [hold.line, hold.until, subject.id, len(subject.events), put_off, *pairs]):
            raise HoldLostError(hold.line)

    def pass_over(self, hold: Hold, until: Mapping[str, int]) -> None:
        """Put jobs off within the line, each until a time (ms), without an attempt.

        Raises:
            HoldLostError: the line is somebody else's now.
        """
        if until:
            pairs = [value for subject_id, time_ms in until.items() for value in (time_ms, subject_id)]
            if not self._pass_over([keys.lines(), keys.line(hold.line)], [hold.line, hold.until, *pairs]):
                raise HoldLostError(hold.line)

    def settle(self, hold: Hold, *, down_for: float = 0.0, reason: str = "", reached: bool = False) -> None:
        """End the hold. With a ``reason`` the line's sinks are out of reach, and nobody tries it for ``down_for``
        seconds. ``reached``: one of them answered, so earlier failures of the line count no more.

        Raises:
            HoldLostError: the line is somebody else's now; nothing was written.
        """
        state = "down" if reason else "well" if reached or not hold.failures else "same"
        if not self._end(hold, down_for, state, reason, reached=reached):
            raise HoldLostError(hold.line)

    def put_back(self, hold: Hold, seconds: float) -> None:
        """Give a line back that was not worked on, to be taken again in ``seconds``; nothing if it was taken over."""
        self._end(hold, seconds, "back")

    def _end(self, hold: Hold, seconds: float, state: str, reason: str = "", *, reached: bool = False) -> bool:
        names = [keys.lines(), keys.line(hold.line), keys.line_state(hold.line), keys.wake_outbox()]
        kept = sorted(hold.put_off.items(), key=lambda item: item[1].until_ms)[-MOST_PUT_OFF:]
        pairs = [text for sink_id, each in kept for text in (sink_id, _written(each))]
        origin = hold.origin if reached else ""
        ended = self._settle(
            [*names, keys.put_off(hold.line), keys.reached()],
            [hold.line, hold.until, int(seconds * 1000), state, reason, origin, *pairs],
        )
        return bool(ended)

    # for people

    def deliveries(self, job_id: str) -> list[Attempt]:
        """Return the latest attempts to deliver the job's events, newest first."""
        rows = cast("list[str]", self._redis.lrange(keys.deliveries(job_id), 0, -1))
        return read_attempts(rows)

    def redeliver(self, job_id: str, sink_id: str | None = None) -> list[str]:
        """Send all of a job's events again, to one sink or to all that have had any; returns their ids."""
        fields = cast("list[str]", self._redis.hkeys(keys.job_sinks(job_id)))
        known = [name for name in fields if ":" not in name and name != "only"]
        chosen = [name for name in known if sink_id in {None, name}]
        if chosen:
            pipe = self._redis.pipeline(transaction=True)
            now = server_ms(self._redis)
            anew = {name: value for sink in chosen for name, value in ((sink, 0), (f"{sink}:again", now))}
            pipe.hset(keys.job_sinks(job_id), mapping=cast("dict[Any, Any]", anew))
            old = ("gone", "next", "failures", "since")
            pipe.hdel(keys.job_sinks(job_id), *(f"{sink}:{note}" for sink in chosen for note in old))
            for line in (name.removeprefix("line:") for name in fields if name.startswith("line:")):
                pipe.zadd(keys.line(line), {job_id: now}, xx=True, lt=True)  # it may be put off there
            self._send_out(pipe, job_id)
            pipe.execute()
        return chosen

    def send_loose(self, subject_id: str, events: Sequence[str], sink_url: str | None = None) -> None:
        """Send events that have no job any more, or never had one: to one sink, or to the service's own."""
        pipe = self._redis.pipeline(transaction=True)
        pipe.rpush(keys.job_events(subject_id), *events)
        if sink_url is not None:
            pipe.hset(keys.job_sinks(subject_id), "only", sink_url)
        self._send_out(pipe, subject_id)
        pipe.execute()

    def wants(self, kind: EventType) -> bool:
        """Tell whether the service's own sinks want events of this kind."""
        return bool(self._redis.sismember(keys.sink_kinds(), kind))

    @staticmethod
    def _send_out(pipe: "redis.client.Pipeline", subject_id: str) -> None:
        pipe.zadd(keys.outbox(), {subject_id: 0})
        pipe.lpush(keys.wake_outbox(), "1")
        pipe.ltrim(keys.wake_outbox(), 0, 0)


def line_origin(line: str) -> str:
    """Return where the sinks of a line are."""
    return line.partition("#")[0]


def read_attempts(rows: Iterable[str]) -> list[Attempt]:
    """Read a job's log of deliveries."""
    return [Attempt(**json.loads(row)) for row in rows]


def read_put_off(rows: Mapping[str, str]) -> dict[str, PutOff]:
    """Read which sinks of a line are put off, by their ids."""
    return {sink_id: PutOff(**json.loads(text)) for sink_id, text in rows.items()}


def _subject(subject_id: str, fields: dict[str, str], events: Sequence[str]) -> Subject:
    only = fields.pop("only", None)
    numbers = {name: int(value) for name, value in fields.items()}
    return Subject(
        id=subject_id,
        reached={name: value for name, value in numbers.items() if ":" not in name},
        notes={name: value for name, value in numbers.items() if ":" in name},
        only=only,
        events=events,
    )


def _written(known: Attempt | PutOff) -> str:
    return json.dumps(asdict(known), separators=(",", ":"))
