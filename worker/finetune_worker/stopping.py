"""A worker's end: stages hear of it when the signal comes, and those that still run are let alone."""

import signal
from types import FrameType
from typing import Any

import structlog
from celery import bootsteps
from celery.concurrency.thread import TaskPool

from finetune_worker.container import Container

log = structlog.get_logger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT)


_apply = TaskPool.on_apply


def mend_pool() -> None:
    """Let Celery's thread pool take what comes to it while the worker is stopped; each would end the worker as
    "Unrecoverable error".

    After the soft shutdown Celery cancels what still runs. A thread cannot be ended: its stage parks by itself, soon.
    And the signal's handler closes the pool wherever it met the main thread, which may have a message in hand.
    """
    TaskPool.terminate_job = _let_alone  # type: ignore[method-assign]
    TaskPool.on_apply = _apply_or_give_back  # type: ignore[method-assign]


def _let_alone(self: Any, pid: object, signal: object = None) -> None:
    pass


def _apply_or_give_back(self: Any, target: Any, args: Any = None, *more: Any, **options: Any) -> Any:
    if self._state == TaskPool.TERMINATE:
        # Not acknowledged: it goes back to its queue when the connection is closed.
        log.info("message_given_back", task=args[0], task_id=args[1])
        return None
    return _apply(self, target, args, *more, **options)


class StopSignalStep(bootsteps.StartStopStep):
    """Counts a stop from its signal on. Celery's own ``worker_shutting_down`` comes when its soft shutdown is over."""

    requires = ("celery.worker.components:Pool",)

    def start(self, parent: Any) -> None:
        """Put ourselves before Celery's handlers, which are there by now."""
        container: Container = parent.app.finetune.container
        for number in _SIGNALS:
            _before(number, container)


def _before(number: signal.Signals, container: Container) -> None:
    handler = signal.getsignal(number)
    if not callable(handler):
        return

    def stop(received: int, frame: FrameType | None) -> None:
        container.stop_soon()
        handler(received, frame)

    signal.signal(number, stop)
