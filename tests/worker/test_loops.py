"""A worker's own loops: they outlast every outage of Redis, however long."""

import threading
from typing import Any

import pytest
from structlog.testing import capture_logs

from finetune_queue.contract import JobState
from finetune_queue.store import Change, RedisError, Retention, keys
from finetune_worker import loops
from finetune_worker.backoff import backoff
from finetune_worker.dispatcher import DispatcherStep
from finetune_worker.loops import LoopStep
from finetune_worker.pulse import Loop
from support.bench import Bench
from support.full import full
from support.until import until

AN_HOUR_OF_TRIES = 1100


class Rounds:
    """Meets an outage, then a defect, then nothing more."""

    def __init__(self, step: LoopStep, outage: int) -> None:
        self._loop = step
        self._left = outage
        self.announced = 0
        self.slept: list[float] = []

    def announce(self) -> None:
        self.announced += 1

    def step(self) -> float:
        if self._left:
            self._left -= 1
            raise RedisError("Connection refused")
        return 1.5

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if len(self.slept) == 1:
            raise ZeroDivisionError
        self._loop.stopping.set()


def test_a_loop_outlasts_a_long_outage_and_a_defect(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "LONGEST_RETRY", 1e-6)
    made: list[Rounds] = []

    class Step(LoopStep):
        loop = Loop.NOTIFIER

        def rounds(self, container: Any) -> Rounds:
            assert container is bench.container
            made.append(Rounds(self, AN_HOUR_OF_TRIES))
            return made[0]

    step = Step(None)
    with capture_logs() as logs:
        step.run(bench.container)
    [rounds] = made
    assert (rounds.announced, rounds.slept) == (1, [1.5, 1.5])
    assert bench.container.pulse.age(Loop.NOTIFIER) < 60
    assert [(each["event"], each["loop"]) for each in logs] == [
        ("loop_waits_for_redis", "notifier"),
        ("loop_goes_on", "notifier"),
        ("loop_failed", "notifier"),
    ]
    assert logs[1]["tries"] == AN_HOUR_OF_TRIES + 1


def test_on_a_full_server_finished_jobs_are_removed_though_the_worker_cannot_announce_itself(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, client = bench.container.jobs, bench.container.jobs._redis
    monkeypatch.setattr(loops, "LONGEST_SLEEP", 0.2)
    bench.container.retention = Retention(client, -2)
    ended = jobs.transition(bench.job(), Change(), to=JobState.CANCELLED)
    client.delete(keys.accounts(), keys.outbox())
    step = DispatcherStep(None)
    thread = threading.Thread(target=step.run, args=(bench.container,), daemon=True)
    with full(client):
        thread.start()
        until(lambda: not client.exists(keys.job(ended.id)), seconds=30)
        assert not bench.container.accounts.names()
    until(lambda: bench.container.accounts.names() == ["default"], seconds=30)
    step.stopping.set()
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize(("failures", "longest"), [(1, 2.0), (2, 4.0), (4, 16.0), (9, 300.0), (100_000, 300.0)])
def test_the_wait_doubles_up_to_its_longest(failures: int, longest: float) -> None:
    waits = [backoff(failures, base=2.0, longest=300.0) for _ in range(50)]
    assert longest / 2 <= min(waits)
    assert max(waits) <= longest
    assert len(set(waits)) > 1
