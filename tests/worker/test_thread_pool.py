"""Celery's thread pool as it is mended: the event loop hears of a thread that is free. And a word on other pools."""

import socket
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from celery import signals
from celery.concurrency.base import BasePool
from celery.concurrency.prefork import TaskPool as PreforkPool
from celery.concurrency.thread import TaskPool
from kombu.asynchronous import Hub, set_event_loop
from kombu.asynchronous.timer import Timer
from structlog.testing import capture_logs

import finetune_worker.celery
from finetune_worker.thread_pool import patch_thread_pool
from support.until import until


@pytest.fixture
def pool() -> Iterator[TaskPool]:
    patch_thread_pool()
    pool = TaskPool(limit=1)
    pool.on_start()
    yield pool
    pool.on_stop()


@pytest.fixture(params=[False, True], ids=["first connection", "after a lost one"])
def rounds(request: pytest.FixtureRequest, pool: TaskPool) -> Iterator[list[None]]:
    """An event loop that has nothing to do for minutes, as while all threads are busy; it notes each of its rounds."""
    noted: list[None] = []
    hub = Hub(Timer(max_interval=600))
    set_event_loop(hub)
    if request.param:
        hub.reset()  # as celery.worker.loops.asynloop does, before the next connection begins it anew
    pool.register_with_event_loop(hub)
    hub.on_tick.add(lambda: noted.append(None))  # type: ignore[attr-defined]  # a set, whatever the stubs say
    far = hub.call_later(600, lambda: None)
    ours, theirs = socket.socketpair()  # stands for the connections that the loop waits for
    hub.add_reader(ours, lambda: None)
    ended = threading.Event()

    def run() -> None:
        loop = hub.create_loop()
        while not ended.is_set():
            next(loop)

    thread = threading.Thread(target=run)
    thread.start()
    yield noted
    ended.set()
    hub.call_soon(lambda: None)
    thread.join()
    far.cancel()
    set_event_loop(None)
    hub.close()
    ours.close()
    theirs.close()


def test_the_end_of_a_task_wakes_the_event_loop(pool: TaskPool, rounds: list[None]) -> None:
    go, begun = threading.Event(), threading.Event()

    def task() -> None:
        begun.set()
        go.wait()

    result = pool.on_apply(task, (), {}, accept_callback=None)
    assert begun.wait(30)
    until(lambda: len(rounds) == 1, seconds=30)
    before = len(rounds)
    go.set()
    result.wait(30)
    # By itself the loop would look again after ten seconds.
    until(lambda: len(rounds) > before, seconds=9)


class GreenPool(BasePool):
    is_green = True


@pytest.mark.parametrize("pool", [GreenPool, TaskPool, PreforkPool])
def test_a_pool_without_an_event_loop_is_warned_of(pool: type[BasePool]) -> None:
    with capture_logs() as logs:
        signals.celeryd_after_setup.send(
            sender="worker@here", instance=SimpleNamespace(pool_cls=pool), conf=finetune_worker.celery.app.conf
        )
    assert [entry["event"] for entry in logs] == (["pool_slow"] if pool is GreenPool else [])
