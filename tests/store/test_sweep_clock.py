"""When an account is swept: hints bring a sweep forward and add none. Time passes only where a test says so."""

from itertools import pairwise

import pytest
import redis

from finetune_queue.store import SWEEP, Accounts, Budget, CallClass, Slot, SweepClock, keys
from finetune_queue.store.room import room_score_floor
from support import simulation

INTERVAL, SHARE, GAP = 100.0, 50.0, 10.0


class Clock:
    """An account that is swept whenever it is due."""

    def __init__(self, time: simulation.Clock, client: redis.Redis, sweep_clock: SweepClock, budget: Budget) -> None:
        self.time, self.client, self.sweep_clock, self.budget = time, client, sweep_clock, budget
        self.idle = INTERVAL
        self.sweeps: list[float] = []
        client.zadd(keys.tracked("default"), {"a-job": 1})

    @property
    def now(self) -> float:
        """The seconds since the test began."""
        return (self.time.ms - simulation.START_MS) / 1000

    def sweep_if_due(self) -> bool:
        holders, _ = self.budget.reserve("default", 10)
        if holders != [SWEEP]:
            return False
        self.sweeps.append(self.now)
        self.sweep_clock.swept("default", INTERVAL, idle=self.idle, affordable=SHARE, gap=GAP)
        return True

    def run(self, seconds: int, *, hints: bool) -> None:
        for _ in range(seconds):
            if hints:
                self.sweep_clock.hint("default")
            self.sweep_if_due()
            self.time.advance(1.0)


@pytest.fixture(autouse=True)
def time(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> simulation.Clock:
    """The server's time, before anything loads a script that asks for it."""
    found = simulation.Clock(client)
    found.rule(monkeypatch)
    return found


@pytest.fixture
def clock(time: simulation.Clock, client: redis.Redis, sweep_clock: SweepClock, budget: Budget) -> Clock:
    found = Clock(time, client, sweep_clock, budget)
    assert found.sweep_if_due()
    return found


def test_without_hints_an_account_is_swept_once_an_interval(clock: Clock) -> None:
    clock.run(250, hints=False)
    assert clock.sweeps == [0, 100, 200]


def test_a_hint_brings_the_next_sweep_forward(clock: Clock, sweep_clock: SweepClock) -> None:
    clock.time.advance(30)
    assert sweep_clock.hint("default") == 0
    assert clock.sweep_if_due()
    clock.run(200, hints=False)
    assert clock.sweeps == [0, 30, 130]


def test_a_hint_just_after_a_sweep_waits_for_the_least_gap(clock: Clock, sweep_clock: SweepClock) -> None:
    assert sweep_clock.hint("default") == GAP
    assert sweep_clock.hint("default") == GAP


def test_a_flood_of_hints_costs_no_more_than_the_share_of_looking(clock: Clock) -> None:
    clock.run(401, hints=True)
    assert len(clock.sweeps) == 1 + 400 / SHARE + 1  # one of them ahead of its time
    assert min(later - earlier for earlier, later in pairwise(clock.sweeps)) >= GAP


def test_a_flood_does_not_put_sweeps_off(clock: Clock) -> None:
    clock.run(250, hints=True)
    clock.run(300, hints=False)
    assert max(later - earlier for earlier, later in pairwise(clock.sweeps)) <= INTERVAL


def test_a_hint_during_a_sweep_is_not_lost(clock: Clock, sweep_clock: SweepClock, budget: Budget) -> None:
    clock.time.advance(100)
    assert budget.reserve("default", 10)[0] == [SWEEP]
    clock.time.advance(15)  # longer than the gap: it runs, and has read its list
    sweep_clock.hint("default")
    sweep_clock.swept("default", INTERVAL, idle=INTERVAL, affordable=SHARE, gap=GAP)
    assert clock.sweep_if_due()


def test_a_hint_without_trainings_does_nothing(client: redis.Redis, sweep_clock: SweepClock) -> None:
    assert sweep_clock.hint("default") is None
    assert client.hgetall(keys.account("default")).get("sweep_at") is None


def test_a_hint_wakes_a_dispatcher_only_when_it_changes_something(clock: Clock, sweep_clock: SweepClock) -> None:
    clock.time.advance(30)
    clock.client.delete(keys.wake())
    sweep_clock.hint("default")
    assert clock.client.llen(keys.wake()) == 1
    clock.client.delete(keys.wake())
    sweep_clock.hint("default")
    assert clock.client.llen(keys.wake()) == 0


def test_the_end_of_a_sweep_wakes_a_dispatcher_for_the_next(clock: Clock, client: redis.Redis) -> None:
    client.delete(keys.wake())
    clock.sweep_clock.swept("default", 1.0, idle=1.0, affordable=1.0, gap=1.0)
    assert client.llen(keys.wake()) == 1


def idle_for(budget: Budget) -> float:
    """Return the seconds until there is something to hand out, as there is nothing now."""
    holders, wait = budget.reserve("default", 10)
    assert not holders
    assert wait is not None
    return wait


def test_a_look_that_waiting_calls_put_off_comes_when_nobody_waits_and_half_of_the_slots_are_free(
    clock: Clock, client: redis.Redis, accounts: Accounts, budget: Budget
) -> None:
    clock.idle = 20.0
    clock.time.advance(INTERVAL)
    assert clock.sweep_if_due()
    clock.time.advance(30.0)
    free_at = clock.time.ms + 5000
    client.zadd(keys.slots("default"), {"call-1": free_at, "call-2": free_at + 9000, "call-3": free_at + 9000})
    client.zadd(keys.room("default"), {"somebody": room_score_floor(CallClass.SUBMIT)})
    assert idle_for(budget) == 5.0  # then that one starts

    accounts.stop_submits("default", stopped=True)  # so it waits for no call
    assert idle_for(budget) == 14.0
    client.zrem(keys.slots("default"), "call-2")
    assert idle_for(budget) == 5.0
    client.zrem(keys.slots("default"), "call-1")
    assert clock.sweep_if_due()
    assert not clock.sweep_if_due()


def test_an_idle_account_is_looked_at_when_that_is_worth_a_call_of_an_idle_budget(clock: Clock) -> None:
    clock.idle = 20.0
    clock.run(161, hints=False)
    assert clock.sweeps == [0, 100, 120, 140, 160]


def test_a_sweep_that_the_service_itself_wants_comes_at_once(clock: Clock, sweep_clock: SweepClock) -> None:
    clock.time.advance(1.0)  # within the least gap, and before the share of looking has a call for it
    sweep_clock.sweep_now("default")
    assert clock.sweep_if_due()
    clock.run(200, hints=False)
    assert clock.sweeps == [0, 1, 101]


def submit_another(budget: Budget) -> None:
    slot = budget.take("default", "another", 0.0, submit=True)
    assert isinstance(slot, Slot)
    budget.end(slot)


def submit_after_the_others(clock: Clock, client: redis.Redis, budget: Budget, *, seconds: float) -> None:
    """Submit a training so long after a sweep that moved all others on."""
    clock.idle = 20.0
    clock.time.advance(INTERVAL)
    assert clock.sweep_if_due()
    client.delete(keys.tracked("default"))
    clock.time.advance(seconds)
    submit_another(budget)


def test_a_first_training_is_looked_at_as_soon_as_the_last_sweep_allows_an_idle_budget(
    clock: Clock, client: redis.Redis, budget: Budget
) -> None:
    submit_after_the_others(clock, client, budget, seconds=2.0)
    clock.run(19, hints=False)
    assert clock.sweeps == [0, 100, 120]


def test_a_first_training_has_its_first_look_when_that_may_show_something(
    clock: Clock, client: redis.Redis, budget: Budget
) -> None:
    submit_after_the_others(clock, client, budget, seconds=50.0)
    clock.run(12, hints=False)
    assert clock.sweeps == [0, 100, 160]


def test_trainings_that_come_one_by_one_are_not_looked_at_more_often_while_others_wait_for_calls(
    clock: Clock, client: redis.Redis, budget: Budget
) -> None:
    submit_after_the_others(clock, client, budget, seconds=2.0)
    free_at = clock.time.ms + 50_000
    client.zadd(keys.slots("default"), {"call-2": free_at, "call-3": free_at})
    client.zadd(keys.room("default"), {"somebody": room_score_floor(CallClass.SUBMIT)})
    assert idle_for(budget) == 50.0
    due_ms = float(str(client.hget(keys.account("default"), "sweep_at")))
    assert due_ms - clock.time.ms == (INTERVAL - 2.0) * 1000


def test_no_other_sweep_starts_while_one_runs_however_long(
    clock: Clock, sweep_clock: SweepClock, budget: Budget
) -> None:
    sweep_clock.sweep_now("default")
    assert budget.reserve("default", 10)[0] == [SWEEP]
    assert budget.wants_sweep("default")
    assert isinstance(budget.take_to_sweep("default", 20.0), Slot)
    clock.time.advance(15.0)  # longer than a handover, and than the least gap
    sweep_clock.hint("default")
    assert budget.reserve("default", 10)[0] == []
    assert not budget.wants_sweep("default")

    sweep_clock.swept("default", INTERVAL, idle=INTERVAL, affordable=SHARE, gap=GAP)
    clock.time.advance(GAP)
    assert budget.reserve("default", 10)[0] == [SWEEP]  # for the hint, which was not forgotten


def test_after_a_sweep_that_died_another_comes_when_it_must_have_ended(
    clock: Clock, sweep_clock: SweepClock, budget: Budget
) -> None:
    sweep_clock.sweep_now("default")
    assert budget.reserve("default", 10)[0] == [SWEEP]
    budget.take_to_sweep("default", 5.0)
    clock.time.advance(5.0)
    assert budget.reserve("default", 10)[0] == [SWEEP]
