"""Delivery: sends the events of one line to its sinks, each job's in order, until none is due or the time is over.

What a failed attempt puts off depends on what it says:

- No connection could be made: no sink of the origin has a better chance than another. The whole line rests.
- There was a connection and no answer: the sink is put off, and the line rests for half as long, so that the next
  attempt is at another sink. If that one answers, the line goes on, and only the first sink stays put off.
- The sink refused the event of one job: that job is put off within the line.

All of these wait longer each time. Events that a sink did not take for `FINETUNE_SINK_LIMIT`, or never will, become a
dead letter, but not before an attempt has shown how that sink, or its whole origin, is.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import replace

import structlog

from finetune_queue.contract import FineTuneRequest, Sink
from finetune_queue.store import (
    DELIVERIES,
    Attempt,
    DeadLetter,
    Hold,
    HoldLostError,
    LostDelivery,
    PutOff,
    SetBackError,
    Subject,
)
from finetune_worker.backoff import try_again_in
from finetune_worker.container import Container
from finetune_worker.sinks import DeliveryError, Sending

log = structlog.get_logger(__name__)

SLICE = 10.0
"""Seconds after which a line goes back, so that others get their turn."""

BATCH = 50
"""Jobs of a line that are read at once."""


class _LineDownError(Exception):
    """A sink of the line is out of reach; ``subject_id`` is the job whose event showed it."""

    def __init__(self, cause: DeliveryError, sink: Sink, subject_id: str) -> None:
        super().__init__(cause.sentence)
        self.cause = cause
        self.sink = sink
        self.subject_id = subject_id


def deliver_line(container: Container, hold: Hold, stopping: threading.Event) -> None:
    """Deliver what is due in a line that this worker holds.

    Raises:
        RedisError: the store is out of reach; the hold runs out by itself.
    """
    try:
        with container.sinks.open() as sending:
            _Delivery(container, hold, sending).run(stopping)
    except HoldLostError:
        log.warning("line_lost", line=hold.line)


class _Delivery:
    def __init__(self, container: Container, hold: Hold, sending: Sending) -> None:
        self._container = container
        self._outbox = container.outbox
        self._hold = hold
        self._sending = sending
        self._lease = container.settings.finetune_lease
        self._reached = False
        # Times are the Redis server's: a machine with a wrong date would give up all events at once. A hold is short,
        # so the server is asked once.
        self._zero_ms = container.deadlines.now_ms() - time.monotonic() * 1000

    def run(self, stopping: threading.Event) -> None:
        began_ms, end = self._now_ms(), time.monotonic() + SLICE
        try:
            while time.monotonic() < end and not stopping.is_set():
                ids = self._outbox.waiting(self._hold, BATCH, due=True)
                if not ids:
                    self._forget_put_off(began_ms)
                    break
                passed = self._pass_over(ids, self._now_ms())
                for subject_id in ids:
                    if time.monotonic() >= end or stopping.is_set():
                        break
                    if subject_id not in passed:
                        self._deliver(subject_id)
        except _LineDownError as down:
            self._line_is_down(down)
        else:
            self._outbox.settle(self._hold, reached=self._reached)

    def _deliver(self, subject_id: str) -> None:
        subject, sinks = self._read(subject_id)
        # A job that only a newer version can read stays in the line, which may be that of a sink in its request.
        delay = None if sinks is not None else self._container.settings.finetune_lease
        try:
            for sink in sinks or ():
                now = self._now_ms()
                until = max(self._put_off_until(sink, now) or 0, subject.rests_until(sink))
                if until <= now:
                    wait = self._deliver_to(subject, sink)
                else:
                    wait = (until - now) / 1000 if subject.wanted(sink) else None
                if wait is not None:
                    delay = wait if delay is None else min(delay, wait)
        except SetBackError:
            return  # still in the line: it is read again
        self._outbox.leave(self._hold, subject, sinks or (), delay=delay)

    def _read(self, subject_id: str) -> tuple[Subject, list[Sink] | None]:
        """Return what there is to deliver of a job, and those of its sinks that wait in this line; None for the sinks
        if this version cannot know them."""
        subject = self._outbox.subject(subject_id)
        found, unreadable = self._container.jobs.read_many([subject_id])
        if unreadable:
            return subject, None
        return subject, self._in_line(subject, found[0].request if found else None)

    def _in_line(self, subject: Subject, request: FineTuneRequest | None) -> list[Sink] | None:
        """Return those of the sinks that wait in this line; None if this version cannot know them."""
        sinks = self._container.sinks.of(request, subject.only)
        return None if sinks is None else [sink for sink in sinks if sink.line(subject.id) == self._hold.line]

    def _deliver_to(self, subject: Subject, sink: Sink) -> float | None:
        """Deliver a job's events to one sink; returns in how many seconds to go on, None when it has all."""
        for place, event, text in subject.wanted(sink):
            began = time.monotonic()
            attempt = Attempt(event.id, sink.shown, sink.id, "delivered", self._now_ms(), 0)
            try:
                status = self._sending.send(sink, event, text)
            except DeliveryError as error:
                attempt = replace(attempt, outcome="failed", status=error.status, detail=error.sentence)
                return self._failed(subject, sink, replace(attempt, took_ms=_since(began)), error)
            attempt = replace(attempt, status=status, took_ms=_since(began))
            self._note(subject, sink, attempt, after=place)
            log.info("event_delivered", job_id=subject.id, event_id=event.id, sink=sink.shown)
            self._has_answered(sink)
        return None

    def _failed(self, subject: Subject, sink: Sink, attempt: Attempt, error: DeliveryError) -> float | None:
        if error.status is not None and not error.unreachable:
            self._has_answered(sink)
        if error.hopeless or error.gone or self._expired(subject, sink):
            self._give_up(subject, sink, attempt, gone=error.gone)
            if error.unreachable:
                raise _LineDownError(error, sink, subject.id)
            return None
        failures = self._note(subject, sink, attempt, after=subject.after(sink))
        log.warning(
            "delivery_failed", job_id=subject.id, event_id=attempt.event_id, sink=sink.shown, reason=error.sentence
        )
        if error.unreachable:
            raise _LineDownError(error, sink, subject.id)
        wait = self._backoff(failures)
        # The job may be due before, for the sake of another sink.
        self._outbox.rest(subject.id, sink, self._now_ms() + int(wait * 1000))
        return wait

    def _note(
        self,
        subject: Subject,
        sink: Sink,
        attempt: Attempt,
        *,
        after: int,
        dead: DeadLetter | None = None,
        gone: bool = False,
    ) -> int:
        before = subject.after(sink)
        failures = self._outbox.attempted(
            self._hold, subject.id, attempt, before=before, after=after, lease=self._lease, dead=dead, gone=gone
        )
        subject.reached[sink.id] = after
        self._container.counters.add(DELIVERIES, attempt.outcome)
        return failures

    def _expired(self, subject: Subject, sink: Sink) -> bool:
        since = subject.since(sink, self._hold.line)
        if since is None:
            return False
        return self._now_ms() - since >= self._container.settings.finetune_sink_limit * 1000

    def _give_up(self, subject: Subject, sink: Sink, attempt: Attempt, *, gone: bool = False) -> None:
        """Make one dead letter of all events that the sink lacks, so that they can be sent again without the job. A
        sink that is ``gone`` gets no later event of the job either."""
        lost = [text for _, _, text in subject.wanted(sink)]
        content = LostDelivery(subject.id, sink.shown, sink.url, lost)
        letter = DeadLetter(attempt.event_id, "the events were not delivered", [attempt.detail], content)
        attempt = replace(attempt, outcome="dead")
        self._note(subject, sink, attempt, after=len(subject.events), dead=letter, gone=gone)
        log.error("delivery_given_up", job_id=subject.id, sink=sink.shown, events=len(lost), reason=attempt.detail)

    def _has_answered(self, sink: Sink) -> None:
        known = self._hold.put_off.pop(sink.id, None)
        failures = known.failures if known else self._hold.failures
        if known or (failures and not self._hold.put_off):
            log.info("sink_up", line=self._hold.line, sink=sink.shown, failures=failures)
        self._hold.failures = 0
        self._reached = True

    def _line_is_down(self, down: _LineDownError) -> None:
        error, rest = down.cause, self._backoff(self._hold.failures + 1)
        if error.whole_origin:
            if not self._hold.failures:
                log.warning("sink_down", line=self._hold.line, reason=error.sentence, again_in_s=round(rest, 1))
            self._bury_expired(down)
        else:
            found_ms = self._now_ms()
            rest = self._put_off(down, rest, found_ms)
            self._pass_over_due(down, found_ms)
        self._outbox.settle(self._hold, down_for=rest, reason=error.sentence, reached=self._reached)

    def _pass_over_due(self, down: _LineDownError, found_ms: int) -> None:
        """Pass over the due jobs of sinks that are put off, up to the first job that may be tried: the line's next
        attempt is to be at that one."""
        # Not until the end of the slice, of which the attempt may have left nothing: it has renewed the hold.
        end = time.monotonic() + min(SLICE, self._lease / 2)
        seen: set[str] = set()
        while time.monotonic() < end:
            ids = self._outbox.waiting(self._hold, BATCH, due=True)
            passed = self._pass_over(ids, found_ms, down)
            # If this takes longer than the sink has to wait, the jobs that were put off first are due again.
            if not ids or len(passed) < len(ids) or passed & seen:
                return
            seen |= passed

    def _put_off(self, down: _LineDownError, rest: float, now: int) -> float:
        """Put off the sink that did not answer; returns for how many seconds its line rests. The sink waits for longer
        than the line: else its jobs would get each of the line's attempts, and those of other sinks none."""
        error, sink, known = down.cause, down.sink, self._hold.put_off.get(down.sink.id)
        failures = known.failures + 1 if known else 1
        wait = max(rest, self._backoff(failures))
        if error.after:
            wait = error.after
            rest = min(wait, self._container.settings.finetune_backoff_max)
        else:
            rest /= 2
        self._hold.put_off[sink.id] = PutOff(
            sink=sink.shown,
            failures=failures,
            since_ms=known.since_ms if known else now,
            until_ms=now + int(wait * 1000),
            reason=error.sentence,
            job_id=down.subject_id,
        )
        if known is None:
            log.warning(
                "sink_down", line=self._hold.line, sink=sink.shown, reason=error.sentence, again_in_s=round(wait, 1)
            )
        return rest

    def _put_off_until(self, sink: Sink, now: int) -> int | None:
        """Return until when (ms) the sink is put off, None if it may be tried ``now``."""
        known = self._hold.put_off.get(sink.id)
        return known.until_ms if known and known.until_ms > now else None

    def _forget_put_off(self, before_ms: int) -> None:
        """Forget the put-off sinks whose time was over before ``before_ms``. The line has no job that is due, so none
        waits for them any more: each job that was put off for one has come due since."""
        kept = {sink_id: each for sink_id, each in self._hold.put_off.items() if each.until_ms > before_ms}
        self._hold.put_off = kept

    def _pass_over(self, ids: Sequence[str], now: int, down: _LineDownError | None = None) -> set[str]:
        """Put off, without an attempt, those of the jobs whose sinks in this line are all put off; in bulk, as there
        may be thousands. If an attempt has just found a sink ``down``, also give up what has waited too long for that
        sink. Returns the ids of the jobs that were put off or given up."""
        if not any(each.until_ms > now for each in self._hold.put_off.values()):
            return set()
        found, unreadable = self._container.jobs.read_many(ids)
        requests = {job.id: job.request for job in found}
        until: dict[str, int] = {}
        ended = set()
        for subject in self._outbox.subjects_without_events(ids):
            if subject.id in unreadable:
                continue
            sinks = self._in_line(subject, requests.get(subject.id)) or []
            times = [self._put_off_until(sink, now) for sink in sinks]
            known = [each for each in times if each is not None]
            if not known or len(known) < len(times):
                continue
            tried = [sink for sink in sinks if down is not None and sink.id == down.sink.id]
            if down and any(self._expired(subject, sink) for sink in tried) and self._give_up_late(subject.id, down):
                ended.add(subject.id)
            else:
                until[subject.id] = min(known)
        self._outbox.pass_over(self._hold, until)
        return ended | until.keys()

    def _bury_expired(self, down: _LineDownError) -> None:
        """Give up what has waited too long in a line whose origin is out of reach, from its head on."""
        for subject_id in self._outbox.waiting(self._hold, BATCH, due=False):
            if not self._give_up_late(subject_id, down):
                return

    def _give_up_late(self, subject_id: str, down: _LineDownError) -> bool:
        """Give up a job's events that have waited too long, for the sinks that the failed attempt says something about:
        the one that it was at, or all of the origin. Returns whether nothing of the job is left in the line."""
        subject, sinks = self._read(subject_id)
        if sinks is None:
            return False
        behind = [sink for sink in sinks if subject.wanted(sink)]
        late = [
            sink
            for sink in behind
            if (down.cause.whole_origin or sink.id == down.sink.id) and self._expired(subject, sink)
        ]
        why = down.cause.sentence
        try:
            for sink in late:
                event = subject.wanted(sink)[0][1]
                attempt = Attempt(event.id, sink.shown, sink.id, "dead", self._now_ms(), 0, None, why)
                self._give_up(subject, sink, attempt)
        except SetBackError:
            return False
        if len(late) < len(behind):
            return False
        self._outbox.leave(self._hold, subject, sinks)
        return True

    def _backoff(self, failures: int) -> float:
        return try_again_in(self._container.settings, failures)

    def _now_ms(self) -> int:
        return int(self._zero_ms + time.monotonic() * 1000)


def _since(began: float) -> int:
    return int((time.monotonic() - began) * 1000)
