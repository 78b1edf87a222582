"""Delivery: a line's events to its sinks, each job's in order, until there are none or the time is over.

A sink that is out of reach puts its whole line off; one that refuses a single job's event puts that job off within the
line. Both wait longer each time. What was not taken for `FINETUNE_SINK_LIMIT`, or never will be, becomes a dead letter.
"""

import threading
import time
from dataclasses import replace

import structlog

from finetune_queue.contract import Event, Sink
from finetune_queue.store import (
    DELIVERIES,
    Attempt,
    DeadLetter,
    Hold,
    HoldLostError,
    LostDelivery,
    SetBackError,
    Subject,
)
from finetune_worker.backoff import backoff
from finetune_worker.container import Container
from finetune_worker.sinks import DeliveryError, Sending

log = structlog.get_logger(__name__)

SLICE = 10.0
"""Seconds after which a line goes back, so that others get their turn."""

BATCH = 50
"""Jobs of a line that are read at once."""


class _LineDownError(Exception):
    """The line's sinks are out of reach."""

    def __init__(self, cause: DeliveryError) -> None:
        super().__init__(cause.sentence)
        self.cause = cause


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
        # By the server's clock, so by no other: a machine with a wrong date would give all up at once. Asked for once,
        # as a hold is short.
        self._zero_ms = container.deadlines.now_ms() - time.monotonic() * 1000

    def run(self, stopping: threading.Event) -> None:
        end = time.monotonic() + SLICE
        try:
            while time.monotonic() < end and not stopping.is_set():
                ids = self._outbox.waiting(self._hold, BATCH, due=True)
                if not ids:
                    break
                for subject_id in ids:
                    if time.monotonic() >= end or stopping.is_set():
                        break
                    self._deliver(subject_id)
        except _LineDownError as down:
            self._line_is_down(down.cause)
        else:
            self._outbox.settle(self._hold)

    def _deliver(self, subject_id: str) -> None:
        subject, sinks = self._read(subject_id)
        # A job that only a newer version can read stays in the line: its request may name sinks of this line.
        delay = None if sinks is not None else self._container.settings.finetune_lease
        try:
            for sink in sinks or ():
                wait = self._deliver_to(subject, sink)
                if wait is not None:
                    delay = wait if delay is None else min(delay, wait)
        except SetBackError:
            return  # still in the line: it is read again
        self._outbox.leave(self._hold, subject, sinks or (), delay=delay)

    def _read(self, subject_id: str) -> tuple[Subject, list[Sink] | None]:
        """Return what there is to deliver and to whom, None if this version cannot know that."""
        subject = self._outbox.subject(subject_id)
        found, unreadable = self._container.jobs.read_many([subject_id])
        if unreadable:
            return subject, None
        sinks = self._container.sinks.of(found[0].request if found else None, subject.only)
        return subject, [sink for sink in sinks if sink.line(subject_id) == self._hold.line]

    def _deliver_to(self, subject: Subject, sink: Sink) -> float | None:
        """Deliver a job's events to one sink; returns in how many seconds to go on, None when it has all."""
        for place, event, text in self._wanted(subject, sink):
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
            if self._hold.failures:
                log.info("sink_up", line=self._hold.line, failures=self._hold.failures)
                self._hold.failures = 0
        return None

    @staticmethod
    def _wanted(subject: Subject, sink: Sink) -> list[tuple[int, Event, str]]:
        """Return the events that the sink lacks and wants, each with how many it has after it."""
        if subject.gone(sink):
            return []
        rest = list(enumerate(subject.events, 1))[subject.after(sink) :]
        read = [(place, Event.model_validate_json(text), text) for place, text in rest]
        return [found for found in read if sink.wants(found[1].kind)]

    def _failed(self, subject: Subject, sink: Sink, attempt: Attempt, error: DeliveryError) -> float | None:
        if error.hopeless or error.gone or self._expired(subject, sink):
            self._give_up(subject, sink, attempt, gone=error.gone)
            if error.unreachable:
                raise _LineDownError(error)
            return None
        failures = self._note(subject, sink, attempt, after=subject.after(sink))
        log.warning(
            "delivery_failed", job_id=subject.id, event_id=attempt.event_id, sink=sink.shown, reason=error.sentence
        )
        if error.unreachable:
            raise _LineDownError(error)
        return self._backoff(failures)

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
        """Make a dead letter of what the sink lacks, in order, so that it can be sent again also without the job. One
        that is ``gone`` gets none of the events that follow."""
        lost = [text for _, _, text in self._wanted(subject, sink)]
        content = LostDelivery(subject.id, sink.shown, sink.url, lost)
        letter = DeadLetter(attempt.event_id, "the events were not delivered", [attempt.detail], content)
        attempt = replace(attempt, outcome="dead")
        self._note(subject, sink, attempt, after=len(subject.events), dead=letter, gone=gone)
        log.error("delivery_given_up", job_id=subject.id, sink=sink.shown, events=len(lost), reason=attempt.detail)

    def _line_is_down(self, error: DeliveryError) -> None:
        self._bury_expired(error)
        wait = error.after if error.after is not None else self._backoff(self._hold.failures + 1)
        self._outbox.settle(self._hold, down_for=wait, reason=error.sentence)
        if not self._hold.failures:
            log.warning("sink_down", line=self._hold.line, reason=error.sentence, again_in_s=round(wait, 1))

    def _bury_expired(self, error: DeliveryError) -> None:
        """Give up what has waited too long behind the one job that was tried."""
        for subject_id in self._outbox.waiting(self._hold, BATCH, due=False):
            subject, sinks = self._read(subject_id)
            if sinks is None:
                return
            behind = [sink for sink in sinks if self._wanted(subject, sink)]
            late = [sink for sink in behind if self._expired(subject, sink)]
            try:
                for sink in late:
                    event = self._wanted(subject, sink)[0][1]
                    attempt = Attempt(event.id, sink.shown, sink.id, "dead", self._now_ms(), 0, None, error.sentence)
                    self._give_up(subject, sink, attempt)
            except SetBackError:
                return
            if len(late) < len(behind):
                return
            self._outbox.leave(self._hold, subject, sinks)

    def _backoff(self, failures: int) -> float:
        settings = self._container.settings
        return backoff(failures, base=settings.finetune_backoff_base, longest=settings.finetune_backoff_max)

    def _now_ms(self) -> int:
        return int(self._zero_ms + time.monotonic() * 1000)


def _since(began: float) -> int:
    return int((time.monotonic() - began) * 1000)
