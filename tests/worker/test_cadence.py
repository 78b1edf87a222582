"""How often an account is looked at, as pure arithmetic."""

from collections.abc import Iterator
from typing import Any

import pytest

from finetune_queue.store import AccountLimits
from finetune_worker.stages.cadence import affordable, interval, usual_time

PRO, FREE = AccountLimits(50, 60.0), AccountLimits(5, 60.0)


def seconds(limits: AccountLimits, *running: float, **given: Any) -> float:
    every = affordable(limits, busy=given.pop("busy", False), busy_share=0.04)
    settings = {"usual": None, "affordable_every": every, "shortest": 10.0, "unseen_limit": 900.0}
    return interval(running, **settings | given)


@pytest.mark.parametrize(
    ("limits", "busy", "expected"), [(PRO, False, 10.0), (PRO, True, 30.0), (FREE, False, 24.0), (FREE, True, 300.0)]
)
def test_looks_take_half_of_an_idle_budget_at_most_and_a_small_share_of_a_busy_one(
    limits: AccountLimits, *, busy: bool, expected: float
) -> None:
    assert seconds(limits, 5.0, busy=busy) == expected


def test_while_nothing_is_known_a_look_is_late_by_a_tenth_of_the_oldest_training() -> None:
    assert seconds(PRO, 600.0, 1.0) == 60.0


@pytest.mark.parametrize(
    ("running", "expected"),
    [
        (1.0, 150.0),  # an eighth, for the steps on the way
        (850.0, 50.0),  # in time for the earliest end
        (899.0, 24.0),
        (1000.0, 24.0),  # it may end now
        (2200.0, 124.0),  # it is an unusual one
    ],
)
def test_looks_come_when_trainings_usually_end(running: float, expected: float) -> None:
    assert seconds(PRO, running, usual=1200.0) == pytest.approx(expected)


def test_the_most_urgent_training_counts() -> None:
    assert seconds(PRO, 1.0, 1100.0, 9000.0, usual=1200.0) == pytest.approx(24.0)


def test_a_look_at_many_trainings_costs_a_few_passes_over_them() -> None:
    class Counted(list[float]):
        passes = 0

        def __iter__(self) -> Iterator[float]:
            Counted.passes += 1
            return super().__iter__()

    every = affordable(PRO, busy=False, busy_share=0.04)
    interval(Counted([60.0] * 100), usual=None, affordable_every=every, shortest=10.0, unseen_limit=900.0)

    assert Counted.passes < 5


def test_no_training_goes_unseen_for_too_long() -> None:
    assert seconds(PRO, 20_000.0) == 300.0


def test_a_small_budget_is_spent_on_one_look_rather_than_on_each_training_alone() -> None:
    assert seconds(AccountLimits(1, 60.0), 5.0, busy=True) == 600.0
    assert seconds(FREE, 5.0, busy=True, unseen_limit=60.0) == 40.0


def test_with_nothing_to_look_at_a_new_training_is_seen_soon() -> None:
    assert seconds(PRO) == 10.0


def test_the_usual_time_follows_the_shortest_and_drifts_to_longer_ones() -> None:
    assert usual_time(None, []) is None
    assert usual_time(None, [70.0, 65.0]) == 65.0
    assert usual_time(65.0, []) == 65.0
    assert usual_time(65.0, [60.0, 90.0]) == 60.0
    assert usual_time(60.0, [70.0]) == pytest.approx(61.0)
