"""The notifier in its threads: one sink's trouble is nobody else's."""

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Self

import pytest
import redis

from finetune_queue.store import Standing, keys
from finetune_worker import notifier
from finetune_worker.notifier import CAPS, THREADS
from finetune_worker.sinks import senders
from support.sinks import Deliveries, MakeDeliveries, Receiver
from support.until import until

needs_many_addresses = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux has all of 127.0.0.0/8 without set-up"
)


class Silent:
    """Takes connections and never says a word; ``taken`` are those that it took."""

    def __init__(self, host: str) -> None:
        self._socket = socket.create_server((host, 0), backlog=64)
        self.url = f"http://{host}:{self._socket.getsockname()[1]}/hook"
        self.taken: list[socket.socket] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                self.taken.append(self._socket.accept()[0])
            except OSError:
                return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self.hang_up()

    def hang_up(self) -> None:
        """Close what was taken."""
        for connection in self.taken:
            connection.close()


@contextmanager
def running(bench: Deliveries) -> Iterator[None]:
    """Run the notifier as the worker's boot step does; all of its threads end with the block."""

    def loop() -> None:
        while not bench.stopping.is_set():
            bench.notifier.sleep(min(0.2, bench.notifier.step()))

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        bench.stopping.set()
        thread.join(10)
        until(lambda: not bench.notifier._running, seconds=30)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch, make: MakeDeliveries) -> MakeDeliveries:
    """Makes deliveries that no test sees give up a sink that hangs, however loaded the machine."""
    monkeypatch.setattr(senders, "LONGEST", 300.0)
    return lambda **settings: make(FINETUNE_LEASE="600", **settings)


def running_to(bench: Deliveries, standing: Standing) -> int:
    return list(bench.notifier._running.values()).count(standing)


def test_a_sink_that_hangs_delays_nothing_but_itself(patient: MakeDeliveries, client: redis.Redis) -> None:
    bench = patient()
    with Silent("127.0.0.1") as silent, Receiver() as receiver:
        for _ in range(40):
            bench.job(reply_to=[silent.url])
        with running(bench):
            until(lambda: len(silent.taken) >= 4, seconds=20)
            jobs = [bench.job(reply_to=[receiver.url("/hook"), "list://fine"]) for _ in range(5)]
            until(lambda: len(receiver.got) == client.llen("fine") == len(jobs), seconds=20)
            assert len(silent.taken) == 4
            bench.stopping.set()
            silent.hang_up()  # or the end waits until it is given up


@needs_many_addresses
def test_many_sinks_that_hang_leave_threads_for_the_others(
    make: MakeDeliveries, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = CAPS[Standing.NEW]
    monkeypatch.setitem(CAPS, Standing.NEW, new._replace(look_again=0.2))  # all of them have to be tried once first
    bench = make(FINETUNE_LEASE="0.6", FINETUNE_BACKOFF_BASE="0.01", FINETUNE_BACKOFF_MAX="0.01")
    count = THREADS + 3
    with ExitStack() as opened:
        for number in range(count):
            bench.job(reply_to=[opened.enter_context(Silent(f"127.0.1.{number + 1}")).url])
        opened.enter_context(running(bench))
        until(lambda: [line.failures > 0 for line in bench.lines.all()] == [True] * count, seconds=20)
        until(lambda: running_to(bench, Standing.DOUBTFUL) > 0, seconds=20)
        busy = 0

        def others_get_theirs() -> bool:
            nonlocal busy
            busy = max(busy, running_to(bench, Standing.DOUBTFUL))
            return bool(client.llen("fine"))

        bench.job(reply_to=["list://fine"])
        until(others_get_theirs, seconds=20)
        assert 0 < busy <= CAPS[Standing.DOUBTFUL].threads


@needs_many_addresses
def test_hosts_that_nobody_heard_of_leave_threads_for_the_others(patient: MakeDeliveries, client: redis.Redis) -> None:
    bench = patient()
    with ExitStack() as opened:
        silent = [opened.enter_context(Silent(f"127.0.1.{number + 1}")) for number in range(THREADS + 3)]
        for each in silent:
            bench.job(reply_to=[each.url])
        opened.enter_context(running(bench))
        until(lambda: running_to(bench, Standing.NEW) == CAPS[Standing.NEW].threads, seconds=20)
        bench.job(reply_to=["list://fine"])
        until(lambda: client.llen("fine") == 1, seconds=20)
        assert running_to(bench, Standing.NEW) == CAPS[Standing.NEW].threads
        until(lambda: sum(len(each.taken) for each in silent) == CAPS[Standing.NEW].threads, seconds=20)
        bench.stopping.set()
        for each in silent:
            each.hang_up()  # or the end waits until they are given up


def test_a_redis_that_came_back_without_its_data_is_told_again_which_events_are_wanted(
    make: MakeDeliveries, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifier, "ANNOUNCE_EVERY", 0.05)
    bench = make(FINETUNE_SINKS="list://fine")
    with running(bench):
        client.flushdb()

        def told() -> bool:
            bench.job()
            return bool(client.llen("fine"))

        until(told, seconds=20)


def test_a_line_that_this_worker_took_again_after_a_standstill_ends_quietly_twice(
    make: MakeDeliveries, client: redis.Redis
) -> None:
    bench = make()
    bench.job(reply_to=["list://fine"])
    bench.notifier._line_up()
    [hold], _ = bench.outbox.take_lines(1, 60)
    bench.notifier._deliver(hold)  # the other thread has ended, and said that the line is done
    assert client.llen("fine") == 1


def test_a_line_without_a_thread_for_it_is_tried_again_soon(make: MakeDeliveries) -> None:
    bench = make(FINETUNE_LEASE="60", FINETUNE_BACKOFF_BASE="0.01", FINETUNE_BACKOFF_MAX="0.01")
    with Receiver() as receiver:
        url = receiver.url("/hook")
    bench.job(reply_to=[url])
    bench.deliver()
    doubtful = Standing.DOUBTFUL
    bench.notifier._running = {f"other{number}": doubtful for number in range(CAPS[doubtful].threads)}

    def put_back() -> bool:
        bench.notifier._start_lines()
        [line] = bench.lines.all()
        seconds, _ = bench.container.jobs._redis.time()
        return bool(50 < line.next_ms - seconds * 1000 < 5_000)

    until(put_back, seconds=20)
    assert [line.failures for line in bench.lines.all()] == [1]


def test_a_line_to_a_new_place_without_a_thread_for_it_waits_and_wakes_nobody(
    make: MakeDeliveries, client: redis.Redis
) -> None:
    bench = make()
    bench.job(reply_to=["https://new.example/hook"])
    bench.line_up()
    bench.notifier._running = {f"other{number}": Standing.NEW for number in range(CAPS[Standing.NEW].threads)}
    client.delete(keys.wake_outbox())

    before, _ = client.time()
    bench.notifier._start_lines()
    after, _ = client.time()

    [line] = bench.lines.all()
    assert before <= line.next_ms / 1000 - CAPS[Standing.NEW].look_again <= after + 1
    assert client.exists(keys.wake_outbox()) == 0


def test_a_line_whose_thread_the_system_refused_takes_no_place(
    make: MakeDeliveries, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make()

    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")  # as Python says it

    bench.job(reply_to=["http://127.0.0.1:9/hook"])
    bench.notifier._line_up()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(RuntimeError, match="thread"):
            bench.notifier.step()
    assert bench.notifier._free() == THREADS


def test_a_notifier_that_stops_gives_its_lines_back(make: MakeDeliveries) -> None:
    bench = make(FINETUNE_LEASE="60")
    started = threading.Event()
    with Receiver() as receiver:

        def slow(handler: Any) -> None:
            started.set()
            bench.stopping.wait(30)
            handler.send_response(204)
            handler.end_headers()

        receiver.refuse = [slow]
        bench.cancelled(reply_to=[receiver.url("/hook")])
        with running(bench):
            assert started.wait(20)
        bench.deliver()  # without waiting for the hold to run out
    assert len(receiver.got) == 2


def test_a_notifier_sleeps_until_there_is_news(make: MakeDeliveries) -> None:
    bench = make()
    bench.notifier.step()
    woken = threading.Event()

    def sleep() -> None:
        bench.notifier.sleep(40)
        woken.set()

    thread = threading.Thread(target=sleep)
    thread.start()
    assert not woken.wait(0.2)
    bench.job(reply_to=["list://x"])
    assert woken.wait(30)
    thread.join(10)
