"""What must be known of Celery 5.7's thread pool: how it meets a stop, and that a free thread tells nobody."""

from typing import Any

import structlog
from celery.concurrency.thread import TaskPool
from kombu.asynchronous import get_event_loop

log = structlog.get_logger(__name__)

_apply = TaskPool.on_apply


def mend_pool() -> None:
    """Let the pool take what comes to it while the worker is stopped, and fetch the next message when a thread is free.

    What comes while the worker is stopped would end it as "Unrecoverable error". After the soft shutdown Celery cancels
    what still runs. A thread cannot be ended: its stage parks by itself, soon. And the signal's handler closes the pool
    wherever it met the main thread, which may have a message in hand.

    With ``worker_disable_prefetch`` the event loop asks for no message while all threads are busy. It looks again when
    something wakes it, and the end of a task, in its thread, did not: up to a second went by for each.
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
    result = _apply(self, target, args, *more, **options)
    result.f.add_done_callback(_wake_event_loop)
    return result


def _wake_event_loop(_: object) -> None:
    loop = get_event_loop()
    if loop is not None:
        loop.call_soon(_nothing)


def _nothing() -> None:
    """What the event loop does once it is awake; then it looks for messages."""
