"""The notifier: gets events to their sinks, in threads of its own beside the worker's tasks.

A sink that hangs holds such a thread and never a place where a stage could run. Any worker can do all the work; what
one takes, no other gets. See docs/decisions/0006.
"""

import threading
import time
from typing import NamedTuple

import structlog

from finetune_queue.store import Hold, RedisError, Standing
from finetune_worker import loops
from finetune_worker.container import Container
from finetune_worker.delivery import deliver_line
from finetune_worker.loops import LoopStep, next_in
from finetune_worker.pulse import Loop

log = structlog.get_logger(__name__)

BATCH = 100
"""Jobs moved into lines at once."""

THREADS = 12
"""Lines that are worked on at once."""


class _Cap(NamedTuple):
    """How many threads the lines of one standing may use, and seconds until a line that got none is looked at again."""

    threads: int
    look_again: float


CAPS = {Standing.DOUBTFUL: _Cap(4, 0.5), Standing.NEW: _Cap(6, 2.0)}
"""What lines to places that were out of reach, or that have never answered, may use: there may be many of either, and
they must not keep the others waiting."""

ANNOUNCE_EVERY = 10.0
"""Seconds until it is said again which events are wanted: a Redis that came back without its data has forgotten it."""


class Notifier:
    """One pass: move jobs with news into lines, start work on lines that are due, say how long to sleep."""

    def __init__(self, container: Container, stopping: threading.Event) -> None:
        """``stopping`` ends the deliveries that are under way, each after its event."""
        self._container = container
        self._outbox = container.outbox
        self._stopping = stopping
        self._announce_at = time.monotonic()
        self._lock = threading.Lock()
        self._running: dict[str, Standing] = {}
        self._freed = threading.Event()

    def announce(self) -> None:
        """Tell which kinds of events the service's own sinks want."""
        self._outbox.announce(self._container.sinks.own)
        self._announce_at = time.monotonic() + ANNOUNCE_EVERY

    def step(self) -> float:
        """Start everything that can start now; returns the seconds until there may be more.

        Raises:
            RedisError: the store is out of reach.
        """
        if time.monotonic() >= self._announce_at:
            self.announce()
        return min(loops.LONGEST_SLEEP, self._line_up(), self._start_lines())

    def sleep(self, seconds: float) -> None:
        """Sleep for ``seconds``, or until somebody is wanted; while all threads are in use, until one is free."""
        if self._free() > 0:
            self._outbox.wait_for_work(seconds)
        else:
            self._freed.wait(loops.LONGEST_SLEEP)
            self._freed.clear()

    def _line_up(self) -> float:
        ids, wait = self._outbox.take(BATCH, self._container.settings.finetune_lease)
        jobs, unreadable = self._container.jobs.read_many(ids)
        requests = {job.id: job.request for job in jobs}
        for subject_id in ids:
            if subject_id in unreadable:
                continue  # this worker cannot know its sinks: it stays in the outbox, for a newer one
            only = None if subject_id in requests else self._outbox.subject(subject_id).only
            sinks = self._container.sinks.of(requests.get(subject_id), only)
            if sinks is not None:  # or it stays in the outbox, too
                self._outbox.line_up(subject_id, sinks)
        return next_in(wait, more=len(ids) == BATCH)

    def _start_lines(self) -> float:
        free = self._free()
        if free <= 0:
            return loops.LONGEST_SLEEP
        holds, wait = self._outbox.take_lines(free, self._container.settings.finetune_lease)
        for hold in holds:
            cap = CAPS.get(hold.standing)
            if cap is not None and self._count(hold.standing) >= cap.threads:
                self._outbox.put_back(hold, cap.look_again)
            else:
                self._start(hold)
        return next_in(wait, more=len(holds) == free)

    def _start(self, hold: Hold) -> None:
        with self._lock:
            self._running[hold.line] = hold.standing
        name = f"deliver {hold.line}"
        try:
            threading.Thread(target=self._deliver, args=(hold,), name=name, daemon=True).start()
        except RuntimeError:  # the system has no thread left; the hold runs out by itself
            with self._lock:
                del self._running[hold.line]
            raise

    def _free(self) -> int:
        with self._lock:
            return THREADS - len(self._running)

    def _count(self, standing: Standing) -> int:
        with self._lock:
            return list(self._running.values()).count(standing)

    def _deliver(self, hold: Hold) -> None:
        try:
            deliver_line(self._container, hold, self._stopping)
        except RedisError as error:
            log.warning("delivery_waits_for_redis", line=hold.line, error=str(error))
        except Exception:
            log.exception("delivery_crashed", line=hold.line)
        finally:
            with self._lock:
                self._running.pop(hold.line, None)  # may have been taken again, by this worker, after a standstill
            self._freed.set()


class NotifierStep(LoopStep):
    """Runs the notifier."""

    loop = Loop.NOTIFIER

    def rounds(self, container: Container) -> Notifier:
        """Return the notifier, whose deliveries end with the loop."""
        return Notifier(container, self.stopping)
