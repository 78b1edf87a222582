"""The limit as a property: many processes, random latencies, crashes and wrong clocks, judged by a server's log."""

import bisect
import multiprocessing
import random
import threading
import time
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event

import pytest

from finetune_queue.store import AccountLimits, Accounts, Budget, Slot, connect, keys

CALLS = 5
WINDOW = 0.4
CALL_TIMEOUT = 0.15
SECONDS = 3.0
PROCESSES = 4
THREADS = 4
PATIENCE = 60.0
"""Seconds in which even a loaded machine uses most of the limit, for as long as `SECONDS`."""


def _work(url: str, seed: int, arrivals: "Queue[float]", enough: Event) -> None:
    """Call as fast as slots come, until there was ``enough``. ``arrivals`` gets the time at which each call reaches the
    server."""
    chance = random.Random(seed)
    # A worker's own clock may be wrong by hours: nothing that grants a slot may look at it.
    skew = chance.uniform(-7200, 7200)
    real = time.time
    time.time = lambda: real() + skew
    client = connect(url)
    budget = Budget(
        client,
        call_timeout=CALL_TIMEOUT,
        handover=0.03,
        first_sweep=1,
        backoff_base=0.01,
        backoff_max=0.05,
    )

    def call(slot: Slot, mine: random.Random) -> None:
        time.sleep(mine.choice([0.0, 0.0, mine.uniform(0, 0.05)]))
        arrival = time.monotonic()  # one clock for all processes of a machine
        if arrival - slot.asked > CALL_TIMEOUT:
            return  # a loaded machine held it up for longer than a call may take: no client sends it then
        arrivals.put(arrival)
        time.sleep(mine.choice([0.0, mine.uniform(0, 0.05)]))
        if mine.random() < 0.1:
            return  # crashed: nobody ends the call
        if mine.random() < 0.1:
            budget.pause(slot, "503", mine.choice([None, 0.02]))
        else:
            budget.end(slot)

    def call_repeatedly(number: int) -> None:
        mine = random.Random(seed * 100 + number)
        while not enough.is_set():
            slot = budget.take("default", f"{seed}-{number}", 1.0)
            if isinstance(slot, Slot):
                call(slot, mine)
                continue
            if mine.random() < 0.2:
                client.zadd(keys.room("default"), {f"{seed}-{number}-waits": mine.random()})
            time.sleep(mine.uniform(0.005, 0.02))

    def hand_out() -> None:
        mine = random.Random(seed)
        while not enough.is_set():
            holders, _ = budget.reserve("default", 10)
            for holder in holders:
                time.sleep(
                    mine.choice([0.0, 0.0, mine.uniform(0, 0.05)])
                )  # some come when the slot is no longer theirs
                slot = budget.take("default", holder, mine.random())
                if isinstance(slot, Slot):
                    call(slot, mine)
            time.sleep(mine.uniform(0.005, 0.02))

    threads = [threading.Thread(target=call_repeatedly, args=(number,)) for number in range(THREADS)]
    threads += [threading.Thread(target=hand_out)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client.close()


def most_in_any_window(arrivals: list[float], window: float) -> int:
    """Return the most arrivals in any half-open window: what a strict sliding-window log would count."""
    arrivals = sorted(arrivals)
    return max(bisect.bisect_left(arrivals, start + window) - index for index, start in enumerate(arrivals))


def most_in_a_fixed_window(arrivals: list[float], window: float, offset: float) -> int:
    """Return the most arrivals in one of the windows of a server that counts by its clock."""
    counts: dict[int, int] = {}
    for arrival in arrivals:
        number = int((arrival - offset) // window)
        counts[number] = counts.get(number, 0) + 1
    return max(counts.values())


@pytest.mark.parametrize("seed", [1, 2])
def test_no_window_at_the_server_holds_more_than_the_limit(redis_url: str, seed: int) -> None:
    with connect(redis_url) as client:
        Accounts(client).configure("default", AccountLimits(calls=CALLS, window=WINDOW))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "finetune_queue.store"])  # what takes each of them half a second
    arrivals: Queue[float] = context.Queue()
    enough = context.Event()
    workers = [
        context.Process(target=_work, args=(redis_url, seed * 10 + number, arrivals, enough))
        for number in range(PROCESSES)
    ]
    for worker in workers:
        worker.start()
    seen: list[float] = []
    lately = 0
    end = time.monotonic() + PATIENCE
    while any(worker.is_alive() for worker in workers) or not arrivals.empty():
        while not arrivals.empty():
            seen.append(arrivals.get())
        if not enough.is_set():
            now = time.monotonic()
            whole = bool(seen) and now - min(seen) > SECONDS
            lately = sum(arrival > now - SECONDS for arrival in seen) if whole else 0
            if lately > 0.5 * CALLS * SECONDS / WINDOW or now > end:
                enough.set()
        workers[0].join(timeout=0.05)
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0

    assert most_in_any_window(seen, WINDOW) <= CALLS
    # A server may count in fixed windows instead, and nobody tells where they begin. The count above rules them all out
    # if it is right itself; this one shares no code with it.
    for tenth in range(10):
        assert most_in_a_fixed_window(seen, WINDOW, WINDOW * tenth / 10) <= CALLS
    # It must not be exact by making no calls: crashes and pauses cost some, yet most of the limit was used, if not at
    # first on a loaded machine.
    assert lately > 0.5 * CALLS * SECONDS / WINDOW
