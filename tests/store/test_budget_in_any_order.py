"""The budget as a state machine: Hypothesis chooses who comes, who is handed a slot, how calls end and what changes.

The scripts are the real ones, on a real Valkey; time is the test's own, and the server's clock may be set back. What
must hold is counted here from what happened, not read from what the scripts keep. EXAMPLES=n chooses how many are
tried, SEED=n which; SHRINK=0 shows what was found as it was found, soon.
"""

import os

import pytest
import redis
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from finetune_queue.contract import JobState
from finetune_queue.store import (
    SWEEP,
    AccountLimits,
    Accounts,
    Budget,
    CallClass,
    Change,
    JobStore,
    SweepClock,
    keys,
)
from support.budget_steps import CALL_TIMEOUT, FOREVER, HANDOVER, TRAINING_LIMIT, WINDOW, BudgetSteps, Parts
from support.simulation import Clock

MARGIN = 0.032
"""Seconds, just more than a slot stays taken beyond its window: a thousandth of it and a millisecond."""

TICKS = [0.001, 0.5, 2.0, 5.0, 9.0, 11.0, 14.999, 15.001, 19.0, WINDOW + MARGIN, 50.1]
HOWS = ["503", "429 with a time", "timed out", "not sent", "refused"]
CHANGES = ["stop submits", "resume submits", "a hint", "a look is wanted", "the clock is set back", "hours pass"]

indexes = st.integers(0, 11)
limits = st.builds(
    AccountLimits,
    calls=st.integers(1, 4),
    window=st.just(WINDOW),
    max_training=st.none() | st.integers(0, 2),
    max_submits_per_day=st.none() | st.integers(0, 2),
    training_limit=st.just(TRAINING_LIMIT),
)


class AnyOrder(BudgetSteps):
    """The steps, and what must hold."""

    @initialize(first=limits)
    def begin(self, first: AccountLimits) -> None:
        self._configure(first)

    # who comes

    @rule(calls=st.lists(st.sampled_from(CallClass), min_size=1, max_size=4), priority=st.integers(4, 6))
    def come_anew(self, calls: list[CallClass], priority: int) -> None:
        self._come(calls, priority)

    @rule(limit=st.sampled_from([1, 2, 10, 10, 10]), prepare=st.sampled_from([True, True, True, False]))
    def dispatch(self, *, limit: int, prepare: bool) -> None:
        self._dispatch(limit, prepare=prepare)

    @rule(hows=st.lists(st.sampled_from(["well"] * 8 + HOWS), max_size=4), seconds=st.sampled_from([0.001, 2.0, 20.0]))
    def work(self, hows: list[str], seconds: float) -> None:
        """All that are handed a slot come for it, and some calls end."""
        self._dispatch()
        while self.handed_out:
            self._ask(self.handed_out.pop())
        self._tick(seconds)
        for call, how in zip(self._open(), hows, strict=False):
            self._end(call, how, 5.0)
        self._dispatch()

    @rule(
        hows=st.lists(st.sampled_from(["nothing", "nothing", "well", "503", "timed out", "timed out"]), max_size=6),
        later=st.sampled_from([5.0, CALL_TIMEOUT]),
        apart=st.sampled_from([0.001, WINDOW - CALL_TIMEOUT + MARGIN, WINDOW - 5.0 + MARGIN, WINDOW, WINDOW + MARGIN]),
    )
    def all_that_can_go_twice(self, hows: list[str], later: float, apart: float) -> None:
        """What did not arrive yet does so as late as it can, and what comes after it at once."""
        self._come([CallClass.FINISH] * (self.caps.calls - self._taken()))
        for call, how in zip(self._open(), hows, strict=False):
            if how != "nothing":
                self._end(call, how, 5.0)
        self._tick(later)
        for _ in range(2):
            for call in self._on_their_way():
                self._arrive(call)
            self._tick(apart)
            self._come([CallClass.FINISH] * (self.caps.calls - self._taken()))

    @rule(later=st.sampled_from([WINDOW - 0.001, WINDOW + MARGIN]))
    def as_many_again(self, later: float) -> None:
        """All that can go arrive and end together, and others come just before their slots are free, or just after."""
        self._come([CallClass.FINISH] * (self.caps.calls - self._taken()))
        for call in self._open():
            self._end(call, "well", 5.0)
        self._tick(later)
        self._come([CallClass.FINISH] * self.caps.calls)
        for call in self._on_their_way():
            self._arrive(call)

    @precondition(lambda self: self._open())
    @rule(how=st.sampled_from(["503", "429 with a time"]), later=st.sampled_from([2.0, 11.0]))
    def trouble_before_they_come(self, how: str, later: float) -> None:
        self._dispatch()
        self._end(self._open()[0], how, 1.0)
        self._tick(later)
        while self.handed_out:
            self._ask(self.handed_out.pop())

    @rule(
        cap=st.sampled_from(["max_training", "max_submits_per_day"]),
        first=st.sampled_from(["well", *HOWS]),
        later=st.sampled_from([0.5, 30.1]),
    )
    def submits_up_to_a_cap(self, cap: str, first: str, later: float) -> None:
        """Some submits, the first of which may not be sent, and more when there are slots again."""
        self._stop_submits(stopped=False)
        self._configure(AccountLimits(4, WINDOW, **{cap: 1}, training_limit=TRAINING_LIMIT))
        for _ in range(2):
            self._come([CallClass.SUBMIT] * 2)
            self._dispatch(1)
            self._tick(later)
            for call in [each for each in self._open() if each.submit]:
                self._end(call, first, 0.5)
            self.work([], 0.5)
        for job_id in list(self.training):
            self._end_training(job_id)
        self._dispatch()

    @precondition(lambda self: self.handed_out)
    @rule(index=indexes)
    def come_for_it(self, index: int) -> None:
        """A message that a dispatcher sent arrives, perhaps long after its slot lapsed."""
        self._ask(self.handed_out.pop(index % len(self.handed_out)))

    # how calls go

    @precondition(lambda self: self._on_their_way())
    @rule(index=indexes)
    def arrive(self, index: int) -> None:
        self._arrive(self._one_of(self._on_their_way(), index))

    @precondition(lambda self: self._open())
    @rule(index=indexes, how=st.sampled_from(["well", "well", *HOWS]), seconds=st.sampled_from([0.5, 5.0, 100.0]))
    def end(self, index: int, how: str, seconds: float) -> None:
        self._end(self._one_of(self._open(), index), how, seconds)

    # what else happens

    @rule(seconds=st.sampled_from(TICKS))
    def tick(self, seconds: float) -> None:
        self._tick(seconds)

    @rule(what=st.sampled_from(CHANGES) | limits, back=st.sampled_from([0.001, 1.0, 70.0]))
    def something_changes(self, what: str | AccountLimits, back: float) -> None:
        match what:
            case AccountLimits():
                self._configure(what)
            case "stop submits" | "resume submits":
                self._stop_submits(stopped=what == "stop submits")
            case "a hint":
                self.sweep_clock.hint("default")
            case "a look is wanted":
                self.sweep_clock.sweep_now("default")
            case "the clock is set back":
                self.set_back += back
                self.clock.advance(-back)
                self.asleep_until = 0.0
            case "hours pass":
                self._tick(40_000.0)

    @precondition(lambda self: self.training)
    @rule(index=indexes)
    def a_training_ends(self, index: int) -> None:
        self._end_training(self._one_of(list(self.training), index))

    @precondition(lambda self: self._room())
    @rule(index=indexes)
    def cancel(self, index: int) -> None:
        job_id = self._one_of(self._room(), index)
        job, _ = self.known.pop(job_id)
        self.jobs.transition(job, Change(), to=JobState.CANCELLED)
        assert job_id not in self._room()

    # what must hold

    @invariant()
    def no_window_holds_more_than_the_limit(self) -> None:
        arrivals = sorted(self.arrivals)
        for index, first in enumerate(arrivals):
            held = sum(arrival < first + WINDOW for arrival in arrivals[index:])
            since = first - CALL_TIMEOUT - HANDOVER - self.set_back
            in_force = [
                calls
                for (at, calls), (until, _) in zip(self.history, [*self.history[1:], (FOREVER, 0)], strict=True)
                if until >= since and at < first + WINDOW
            ]
            assert held <= max(in_force)

    def teardown(self) -> None:
        """Whoever waits goes on once nothing is in the way, as fast as the limit lets them."""
        own = {keys.account("default"), keys.slots("default"), keys.room("default"), keys.tracked("default")}
        assert set(self.client.keys("*default*")) <= own | {keys.account("default:transfers")}  # however many wait
        for call in self._open():
            call.open = call.under_way = False
            self.budget.end_without_news(call.slot)
        self._stop_submits(stopped=False)
        self._configure(AccountLimits(2, WINDOW))
        self._tick(self.set_back + 3 * 24 * 3600)
        waiting = len(self._room())
        began = self.real
        while self._room():
            holders, wait = self.budget.reserve("default", 10)
            for holder in holders:
                self._ask(holder)
            for call in self._open():
                call.open = False
                self.budget.end(call.slot)
                if call.holder == SWEEP:
                    self.sweep_clock.swept("default", 600.0, idle=600.0, affordable=600.0, gap=2.0)
            self.paused_until, self.probing = 0, False
            if self._room():
                assert wait is not None
                self._tick(max(wait, 0.001))
            assert self.real - began <= (WINDOW + 1) * (waiting + 4), self._room()
        self._tick(2 * (CALL_TIMEOUT + WINDOW))
        assert self._taken() == 0


@pytest.mark.timeout(0)
def test_whoever_comes_and_whatever_changes_the_limit_the_order_the_pauses_and_the_caps_hold(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(client)
    clock.rule(monkeypatch)
    budget = Budget(client, call_timeout=CALL_TIMEOUT, handover=HANDOVER, first_sweep=10, backoff_base=1, backoff_max=8)
    AnyOrder.parts = Parts(client, clock, budget, Accounts(client), SweepClock(client), JobStore(client))
    chosen = settings(
        max_examples=int(os.environ.get("EXAMPLES", "20")),
        stateful_step_count=30,
        database=None,
        phases=[Phase.generate] if os.environ.get("SHRINK") == "0" else list(Phase),
        suppress_health_check=list(HealthCheck),
    )
    if "SEED" in os.environ:
        seed(int(os.environ["SEED"]))(AnyOrder)
    run_state_machine_as_test(AnyOrder, settings=chosen)
