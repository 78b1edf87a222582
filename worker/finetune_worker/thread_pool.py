"""Patches of Celery 5.7's thread pool: for a worker that stops, and for a thread that is free again."""

from typing import Any

import structlog
from celery.concurrency.thread import TaskPool
from kombu.asynchronous import get_event_loop

log = structlog.get_logger(__name__)

_apply = TaskPool.on_apply


def patch_thread_pool() -> None:
    """Patch the thread pool in this process, so that neither a stop nor a busy time does harm.

    While a worker stops, Celery does two things that this pool answers with an error, which would end the worker as an
    "Unrecoverable error". After the soft shutdown it cancels what still runs: a thread cannot be cancelled, and need
    not be, as its stage parks by itself, soon. And the signal's handler closes the pool wherever it met the main
    thread, which may be about to hand a message to it: that message is given back to its queue.

    With ``worker_disable_prefetch`` the event loop asks for no message while all threads are busy, and looks again only
    when something wakes it. The end of a task, in its thread, did not: up to a second went by each time. Now it does.
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
