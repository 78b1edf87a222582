"""How the sinks are: the lines in which jobs' events wait for them, and which sinks are out of reach or refuse."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, cast

import redis

from finetune_queue.contract import Sink
from finetune_queue.contract.job import iso_time
from finetune_queue.store import keys
from finetune_queue.store.outbox import PutOff, Subject, line_origin, read_attempts, read_put_off


@dataclass(frozen=True, slots=True)
class LineStatus:
    """A line in which jobs wait. ``failures`` counts the attempts in a row, the first at ``since_ms``, to which no sink
    answered; ``put_off`` are the sinks that did not answer when they were last tried. ``reached_ms`` is when a sink of
    the same origin last answered, in any line; ``next_ms`` is when the line is due."""

    name: str
    waiting: int
    failures: int
    reason: str
    since_ms: int | None
    next_ms: int
    put_off: tuple[PutOff, ...] = ()
    reached_ms: int = 0

    @property
    def origin(self) -> str:
        """Where its sinks are; several lines may lead there."""
        return line_origin(self.name)

    @property
    def out_of_reach(self) -> bool:
        """Tell whether no sink of the origin has answered since the trouble began; else only some are in trouble."""
        return self.failures > 0 and self.reached_ms <= (self.since_ms or 0)


@dataclass(frozen=True, slots=True)
class SinkTrouble:
    """An origin that is out of reach; or, with a ``refused_job``, one sink that does not take this job's events though
    its origin answers. ``waiting`` counts jobs whose events wait for it: there may be more."""

    sink: str
    since_ms: int
    waiting: int
    reason: str
    refused_job: str | None = None


@dataclass(frozen=True, slots=True)
class SinkWait:
    """A job's events that a sink does not have yet: how many; the id of the next; when (ms) that is tried, None until a
    worker has put the job into the sink's line; and why it was not delivered yet, if that is known. Of a sink that only
    the workers' settings name its origin is known, but no id, and not which events."""

    sink: str
    sink_id: str | None
    event_id: str | None
    events: int | None
    next_ms: int | None
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON shows it, beside attempts."""
        body = {"sink": self.sink, "sink_id": self.sink_id, "event": self.event_id, "outcome": "waiting"}
        next_try = None if self.next_ms is None else iso_time(self.next_ms)
        rest = {"events": self.events, "next_try": next_try, "detail": self.reason}
        return {name: value for name, value in (body | rest).items() if value not in (None, "")}


@dataclass(frozen=True, slots=True)
class SinksView:
    """All lines at one look: how many of their origins are up and how many down (out of reach), how many jobs wait, and
    as ``lag`` for how many seconds the worst of them has been late, refused or down."""

    up: int
    down: int
    waiting: int
    lag: float


class SinkLines:
    """Looks at the lines; it takes none."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def all(self) -> list[LineStatus]:
        """Return every line with somebody in it, those in trouble first."""
        rows = cast("list[tuple[str, float]]", self._redis.zrange(keys.lines(), 0, -1, withscores=True))
        pipe = self._redis.pipeline(transaction=False)
        for name, _ in rows:
            pipe.zcard(keys.line(name))
            pipe.hgetall(keys.line_state(name))
            pipe.hgetall(keys.put_off(name))
            pipe.zscore(keys.reached(), line_origin(name))
        replies = pipe.execute()
        found = [
            LineStatus(
                name=name,
                waiting=waiting,
                failures=int(state.get("failures", "0")),
                reason=state.get("reason", ""),
                since_ms=int(state["since"]) if "since" in state else None,
                next_ms=int(score),
                put_off=tuple(read_put_off(put_off).values()),
                reached_ms=int(reached or 0),
            )
            for (name, score), waiting, state, put_off, reached in zip(
                rows, *(replies[each::4] for each in range(4)), strict=True
            )
        ]
        return sorted(found, key=lambda line: (-line.failures, line.name))

    def troubles(self) -> list[SinkTrouble]:
        """Return the sinks that do not take their events, one entry for each place or sink, the oldest first."""
        lines = self.all()
        found: dict[str, SinkTrouble] = {}
        for each in (*_out_of_reach(lines), *self._refusals(lines)):
            known = found.get(each.sink, replace(each, waiting=0))
            older = min(known, each, key=lambda one: one.since_ms)
            found[each.sink] = replace(older, waiting=known.waiting + each.waiting)
        return sorted(found.values(), key=lambda each: each.since_ms)

    def _refusals(self, lines: Iterable[LineStatus]) -> list[SinkTrouble]:
        """Return the trouble of single sinks whose origin is within reach: each that did not answer, and in each line
        at most one that refused a job's event."""
        up = [line for line in lines if not line.out_of_reach]
        pipe = self._redis.pipeline(transaction=False)
        for line in up:
            pipe.zrange(keys.line(line.name), -1, -1)  # one that was put off is behind all that are due
        last = [(line, ids[0]) for line, ids in zip(up, pipe.execute(), strict=True) if ids]
        for _, job_id in last:
            pipe.hgetall(keys.job_sinks(job_id))
            pipe.lrange(keys.deliveries(job_id), 0, -1)
        replies = pipe.execute()
        found = [
            SinkTrouble(each.sink, each.since_ms, 1, each.reason, each.job_id) for line in up for each in line.put_off
        ]
        for (line, job_id), state, rows in zip(last, replies[::2], replies[1::2], strict=True):
            for attempt in read_attempts(rows):
                since = state.get(f"{attempt.sink_id}:since")
                if since is not None and attempt.sink.startswith(line.origin):
                    found.append(SinkTrouble(attempt.sink, int(since), 1, attempt.detail, job_id))
                    break
        return found

    def waits(self, subject: Subject, sinks: Iterable[Sink]) -> list[SinkWait]:
        """Return which sinks do not have all of a job's events yet. ``sinks`` are those that this program knows, by the
        request and its own settings; any other shows by the line that the job is in."""
        known = list(sinks)
        in_outbox = self._redis.zscore(keys.outbox(), subject.id) is not None
        found = []
        for sink in known:
            lacking = subject.wanted(sink)
            next_ms, reason = self._turn(subject, sink.line(subject.id), sink)
            if lacking and (in_outbox or next_ms is not None):
                found.append(SinkWait(sink.shown, sink.id, lacking[0][1].id, len(lacking), next_ms, reason))
        lines = {name.removeprefix("line:") for name in subject.notes if name.startswith("line:")}
        for line in sorted(lines - {sink.line(subject.id) for sink in known}):
            next_ms, reason = self._turn(subject, line)
            found.append(SinkWait(line_origin(line), None, None, None, next_ms, reason))
        return found

    def _turn(self, subject: Subject, line: str, sink: Sink | None = None) -> tuple[int | None, str]:
        """Return when (ms) it is a job's turn in a line, None if the job is not in it; and why it has to wait."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.zscore(keys.lines(), line)
        pipe.zscore(keys.line(line), subject.id)
        pipe.hget(keys.line_state(line), "reason")
        pipe.hgetall(keys.put_off(line))
        pipe.lrange(keys.deliveries(subject.id), 0, -1)
        due, place, reason, put_off, rows = pipe.execute()
        if place is None:
            return None, ""
        if sink is not None:
            failed = f"{sink.id}:failures" in subject.notes
            own = [each.detail for each in read_attempts(rows) if each.sink_id == sink.id] if failed else []
            silent = read_put_off(put_off).get(sink.id)
            reason = silent.reason if silent else own[0] if own else reason
        return int(max(due or 0, place)), reason or ""

    def view(self) -> SinksView:
        """Return how far the sinks are behind."""
        lines = self.all()
        refusals = self._refusals(lines)
        pipe = self._redis.pipeline(transaction=False)
        pipe.time()
        for index in (keys.outbox(), *(keys.line(line.name) for line in lines)):
            pipe.zrange(index, 0, 0, withscores=True)
        (seconds, micros), *firsts = pipe.execute()
        now = seconds * 1000 + micros / 1000
        since = [first[0][1] for first in firsts if first] + [line.since_ms for line in lines if line.since_ms]
        since += [refusal.since_ms for refusal in refusals]  # each was put off, and so is not due now
        places = {line.origin for line in lines}
        down = {line.origin for line in lines if line.out_of_reach}
        return SinksView(
            up=len(places - down),
            down=len(down),
            waiting=sum(line.waiting for line in lines),
            lag=max(0.0, now - min(since, default=now)) / 1000,
        )


def _out_of_reach(lines: Iterable[LineStatus]) -> list[SinkTrouble]:
    return [
        SinkTrouble(line.origin, line.since_ms or 0, line.waiting, line.reason) for line in lines if line.out_of_reach
    ]
