"""A worker whose loops a test can make stand still: ``celery -A support.odd_worker worker``."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

import structlog
from celery.concurrency.thread import TaskPool
from celery.signals import worker_ready
from kombu.transport.redis import Channel

from finetune_worker import broker, dispatcher, loops, notifier, probes, pulse
from finetune_worker.celery import app
from finetune_worker.pulse import Loop

log = structlog.get_logger(__name__)

LIMIT = 1.3
"""Seconds after which a loop counts as stuck, where a real worker waits for a minute and more."""

pulse.LIMITS.update(dict.fromkeys(Loop, LIMIT))
probes.FRESH = LIMIT
probes.TICK = loops.LONGEST_SLEEP = 0.2
broker.OVERDUE = 0.5


cancel = TaskPool.terminate_job


def tell_and_cancel(self: Any, *args: Any) -> None:
    log.info("task_cancelled")
    cancel(self, *args)


TaskPool.terminate_job = tell_and_cancel  # type: ignore[assignment,method-assign]

apply = TaskPool.on_apply


def stop_and_apply(self: Any, target: Any, args: Any = (), *more: Any, **options: Any) -> Any:
    if args and args[0] == "odd.come_with_signal":
        with self.executor._shutdown_lock, hubs[0]._ready_lock:  # which the main thread takes for each message
            for _ in range(2):  # as a supervisor and its process group may send it
                os.kill(os.getpid(), signal.SIGTERM)  # its handler runs before the next line
    return apply(self, target, args, *more, **options)


TaskPool.on_apply = stop_and_apply  # type: ignore[method-assign]

hubs: list[Any] = []


@worker_ready.connect
def keep_hub(sender: Any, **_: Any) -> None:
    hubs.append(sender.hub)


def stand_still(*_: Any) -> float:
    threading.Event().wait()
    return 0.0


@app.task(name="odd.stop")
def stop(began: str, sign: str, loop: str) -> None:
    """Make a loop stand still, for as long as the worker lives, when the file ``sign`` is there."""
    hold(began, sign)
    kinds: dict[str, Any] = {Loop.DISPATCHER: dispatcher.Dispatcher, Loop.NOTIFIER: notifier.Notifier}
    channel: Any = Channel
    match Loop(loop):
        case Loop.FETCH:
            channel._brpop_start = stand_by
        case Loop.CONSUMER:
            hubs[0].call_soon(stand_still)
        case _:
            kinds[loop].step = stand_still


def stand_by(*_: Any, **__: Any) -> None:
    """Do not ask for a message."""


@app.task(name="odd.hold")
def hold(began: str, sign: str) -> None:
    """Make the file ``began``, then keep a thread busy until the file ``sign`` is there."""
    Path(began).touch()
    while not Path(sign).exists():
        threading.Event().wait(0.02)


@app.task(name="odd.come_with_signal")
def come_with_signal(ran: str) -> None:
    """Have the worker told to stop while its main thread gives the message to a thread; then make the file ``ran``."""
    Path(ran).touch()


@app.task(name="odd.lose_broker")
def lose_broker(broker: int) -> None:
    """Have the worker told to stop in the round of its event loop in which its broker, the process ``broker``, dies."""

    def lose() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(broker, signal.SIGKILL)
        raise ConnectionError("the broker died")

    hubs[0].call_soon(lose)
