"""Patches of Celery 5.7's thread pool: for a worker that stops, and for a thread that is free again."""

from typing import Any

from celery.concurrency.thread import TaskPool
from kombu.asynchronous import get_event_loop, set_event_loop

_apply = TaskPool.on_apply


def patch_thread_pool() -> None:
    """Patch the thread pool in this process.

    A stop: after its soft shutdown Celery cancels the tasks that still run. This pool cannot, and would raise an error
    that ends the worker as an "Unrecoverable error". Nor need it: each stage parks by itself, soon.

    A free thread: with ``worker_disable_prefetch`` the event loop asks for no message while all threads are busy, and
    would notice a free one up to a second later. So the end of a task wakes the loop; also after a lost connection, at
    which kombu forgets the process's loop.
    """
    TaskPool.terminate_job = _let_alone  # type: ignore[method-assign]
    TaskPool.on_apply = _apply_and_wake  # type: ignore[method-assign]
    TaskPool.register_with_event_loop = _name_event_loop  # type: ignore[method-assign]


def _let_alone(self: Any, pid: object, signal: object = None) -> None:
    pass


def _apply_and_wake(self: Any, *args: Any, **options: Any) -> Any:
    result = _apply(self, *args, **options)
    result.f.add_done_callback(_wake_event_loop)
    return result


def _name_event_loop(self: Any, loop: Any) -> None:  # noqa: ARG001 - Celery's signature
    """Celery calls this with its loop for each new connection."""
    set_event_loop(loop)


def _wake_event_loop(_: object) -> None:
    loop = get_event_loop()
    if loop is not None:
        loop.call_soon(_nothing)


def _nothing() -> None:
    """Give the event loop something to wake up for; awake, it asks for messages."""
