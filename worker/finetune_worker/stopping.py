"""A worker's stop: its stages are told when the signal comes, Celery between two rounds of its event loop."""

import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from celery import bootsteps
from celery.worker import state
from celery.worker.loops import asynloop

from finetune_worker.container import Container

_SIGNALS = (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT, signal.SIGHUP)

LOOK_EVERY = 0.1
"""Seconds between two looks of the event loop for a stop that was asked for."""

STUCK_AFTER = 2.0
"""Seconds after a stop's first signal. If another comes later and Celery has not acted yet, its event loop is stuck,
and the signal's handler runs at once. One that comes sooner belongs to the same stop: a supervisor may signal the
process and its group."""


class StopSignalStep(bootsteps.StartStopStep):
    """Gives running stages their time from the signal on, and lets Celery act where its main thread holds no lock.

    Celery's own ``worker_shutting_down`` comes only when its soft shutdown is over. And Celery ends the pool within the
    signal's handler, wherever that interrupts the main thread: if the thread was handing a message to the pool, or
    waking its event loop, the handler waits for ever for a lock that its own thread holds.

    SIGHUP is a stop like SIGTERM: for Celery the program is to run again in this process, which ``python -m celery``
    cannot, and nobody looks after it once its terminal is closed.
    """

    requires = ("celery.worker.components:Pool",)

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self._asked: Callable[[], None] | None = None
        self._asked_at = 0.0
        self._nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # Celery sets its handler all the same

    def start(self, parent: Any) -> None:
        """Put ourselves before Celery's handlers, which are there by now."""
        container: Container = parent.app.finetune.container
        signal.signal(signal.SIGHUP, signal.SIG_IGN if self._nohup else signal.getsignal(signal.SIGTERM))
        for number in _SIGNALS:
            self._before(number, container)
        parent.timer.call_repeatedly(LOOK_EVERY, self._act)
        if parent.hub is not None:
            parent.hub.on_close.add(lambda _: self._act_on_close(parent))

    def _before(self, number: signal.Signals, container: Container) -> None:
        handler = signal.getsignal(number)
        if not callable(handler):
            return

        def stop(received: int, frame: FrameType | None) -> None:
            container.stop_soon()
            now = time.monotonic()
            if self._asked is None:
                self._asked_at = now
            if _in_event_loop(frame) and now - self._asked_at < STUCK_AFTER:
                self._asked = lambda: handler(received, frame)
            else:  # nothing to wait for, or the loop stands still
                self._asked = None
                handler(received, frame)

        signal.signal(number, stop)

    def _act_on_close(self, parent: Any) -> None:
        """Act on a stop when the event loop ends: after a lost connection the next loop begins only with the next
        connection, which may never come."""
        if parent.blueprint.state == bootsteps.RUN:  # type: ignore[attr-defined]  # the stubs lack it
            self._act()

    def _act(self) -> None:
        """Do what was asked for, in the event loop; raises what ends it."""
        if self._asked is not None:
            asked, self._asked = self._asked, None
            asked()
            state.maybe_shutdown()  # before the loop takes another message


def _in_event_loop(frame: FrameType | None) -> bool:
    """Tell whether the main thread was in Celery's event loop, which looks at its timers in each round."""
    while frame is not None:
        if frame.f_code is asynloop.__code__:
            return True
        frame = frame.f_back
    return False
