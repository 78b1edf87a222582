"""Caps on what an account spends and has in flight."""

from dataclasses import replace
from typing import Any

import pytest

from finetune_queue.contract import WaitReason
from finetune_queue.store import SWEEP, AccountLimits, Accounts, Budget, CallClass, JobStore, NoSlot, Slot, keys
from finetune_queue.store.clock import server_ms
from support.calls import parked, refused, take


def test_a_cap_on_submits_holds_submits_only(budget: Budget, jobs: JobStore, accounts: Accounts) -> None:
    accounts.configure("default", AccountLimits(calls=10, window=60.0, max_submits_per_day=1))
    call = take(budget, "job-1", submit=True)
    assert refused(budget, "job-2", submit=True).reason is WaitReason.SPENDING
    presign = parked(jobs, CallClass.PREPARE)
    parked(jobs, CallClass.SUBMIT)
    assert budget.reserve("default", 10)[0] == [presign.id]

    budget.end(call, refund=True)  # it was not sent after all
    take(budget, "job-2", submit=True)


def test_a_submit_of_yesterday_that_was_not_sent_is_not_taken_off_today_s_count(
    budget: Budget, accounts: Accounts
) -> None:
    accounts.configure("default", AccountLimits(calls=10, window=60.0, max_submits_per_day=1))
    call = take(budget, "job-1", submit=True)
    budget.end(replace(call, token="begun before midnight", at_ms=call.at_ms - 24 * 3_600_000), refund=True)
    assert refused(budget, "job-2", submit=True).reason is WaitReason.SPENDING


def test_a_clock_that_goes_back_across_midnight_gives_no_day_twice(
    budget: Budget, accounts: Accounts, client: Any
) -> None:
    accounts.configure("default", AccountLimits(calls=10, window=60.0, max_submits_per_day=2))
    tomorrow = server_ms(client) // 86_400_000 + 1
    client.hset(keys.account("default"), mapping={"spent": 1, "spent_day": tomorrow})

    take(budget, "job-1", submit=True)

    assert refused(budget, "job-2", submit=True).reason is WaitReason.SPENDING
    assert client.hget(keys.account("default"), "spent_day") == str(tomorrow)


def test_a_cap_of_zero_stops_submits(budget: Budget, accounts: Accounts) -> None:
    accounts.configure("default", AccountLimits(calls=10, window=60.0, max_submits_per_day=0))
    assert refused(budget, "job-1", submit=True) == NoSlot(WaitReason.SPENDING, ahead=0, stopped=False)
    accounts.stop_submits("default", stopped=True)
    assert refused(budget, "job-1", submit=True) == NoSlot(WaitReason.SPENDING, ahead=0, stopped=True)


def test_trainings_in_flight_are_capped_exactly(budget: Budget, accounts: Accounts) -> None:
    accounts.configure("default", AccountLimits(calls=10, window=60.0, max_training=2))
    take(budget, "job-1", submit=True)
    take(budget, "job-2", submit=True)
    take(budget, "job-2", submit=True)  # its own place counts once
    assert refused(budget, "job-3", submit=True).reason is WaitReason.TRAININGS


@pytest.mark.parametrize("cap", [{"max_training": 2}, {"max_submits_per_day": 2}])
def test_no_more_submits_are_started_than_a_cap_leaves_room_for(
    budget: Budget, accounts: Accounts, jobs: JobStore, client: Any, cap: dict[str, int]
) -> None:
    accounts.configure("default", AccountLimits(calls=10, window=60.0, **cap))
    waiting = [parked(jobs) for _ in range(4)]

    started, wait = budget.reserve("default", 10)

    assert started == [job.id for job in waiting[:2]]
    assert wait == pytest.approx(2.0)  # by when their slots lapse should they not come
    assert budget.reserve("default", 10)[0] == []  # though they are still on their way
    take(budget, started[0], submit=True)
    assert client.zcard(keys.slots("default")) == 2
    assert budget.reserve("default", 10)[0] == []
    expire_reserved(client)
    assert budget.reserve("default", 10)[0] == [waiting[2].id]  # the other's message was lost


def test_who_waits_behind_submits_that_were_just_handed_out_keeps_no_dispatcher_awake(
    budget: Budget, accounts: Accounts, jobs: JobStore, client: Any
) -> None:
    accounts.configure("default", AccountLimits(calls=5, window=60.0, max_training=1))
    first, _ = parked(jobs), parked(jobs)
    client.zadd(keys.slots("default"), {"free soon": server_ms(client) + 500})
    holders, wait = budget.reserve("default", 10)
    assert holders == [first.id]
    assert wait == 2.0, "the handover: it does not come sooner that one of them did not come for its slot"


def test_while_submits_are_held_a_dispatcher_wakes_for_all_others(
    budget: Budget, accounts: Accounts, jobs: JobStore, client: Any
) -> None:
    accounts.stop_submits("default", stopped=True)
    for call in CallClass:
        parked(jobs, call)
    free_at = server_ms(client) + 5_000
    client.zadd(keys.slots("default"), {f"call-{number}": free_at for number in range(3)})
    holders, wait = budget.reserve("default", 10)
    assert holders == []
    assert wait is not None
    assert 4 < wait <= 5


@pytest.mark.parametrize(
    ("ages", "spent", "days_ago", "held"),
    [
        ([0], 1, 0, False),
        ([0, 3590], 1, 0, True),
        ([0, 3601], 1, 0, False),
        ([0], 2, 0, True),
        ([0], 2, 1, False),
        ([0], 2, -1, True),
        ([0], 2, -2, False),
    ],
)
def test_what_the_scripts_allow_is_what_an_account_s_status_says(  # each of them counts for itself
    budget: Budget,
    accounts: Accounts,
    jobs: JobStore,
    client: Any,
    *,
    ages: list[int],
    spent: int,
    days_ago: int,
    held: bool,
) -> None:
    caps = AccountLimits(10, 60.0, max_training=2, max_submits_per_day=2, training_limit=3600)
    accounts.configure("default", caps)
    now = server_ms(client)
    client.zadd(keys.tracked("default"), {f"training-{age}": now - age * 1000 for age in ages})
    client.hset(keys.account("default"), mapping={"spent": spent, "spent_day": now // 86_400_000 - days_ago})
    waiting = parked(jobs)

    assert accounts.status("default").submits_held is held
    assert [each for each in budget.reserve("default", 10)[0] if each != SWEEP] == ([] if held else [waiting.id])
    assert isinstance(budget.take("default", waiting.id, 0.0, submit=True), NoSlot if held else Slot)


def expire_reserved(client: Any) -> None:
    for member in client.zrange(keys.slots("default"), 0, -1):
        if member.startswith("reserved:"):
            client.zadd(keys.slots("default"), {member: 0})


def test_what_waits_for_a_person_for_longer_than_a_training_lasts_takes_no_place(
    budget: Budget, accounts: Accounts, jobs: JobStore, client: Any
) -> None:
    accounts.configure("default", AccountLimits(calls=10, window=60.0, max_training=1, training_limit=3600))
    take(budget, "job-1", submit=True)
    waiting = parked(jobs)
    assert accounts.status("default").full
    assert refused(budget, "job-2", submit=True).reason is WaitReason.TRAININGS
    assert budget.reserve("default", 10)[0] == []

    since = client.zscore(keys.tracked("default"), "job-1")
    client.zadd(keys.tracked("default"), {"job-1": since - 3_601_000})
    assert not accounts.status("default").full
    assert budget.reserve("default", 10)[0] == [waiting.id]
    take(budget, waiting.id, submit=True)
    assert refused(budget, "job-2", submit=True).reason is WaitReason.TRAININGS


@pytest.mark.parametrize("window", [0.07, 2.01, 64.1])
def test_a_window_that_is_no_whole_number_of_seconds_is_kept_as_it_was_set(accounts: Accounts, window: float) -> None:
    accounts.configure("default", AccountLimits(calls=5, window=window))
    assert accounts.status("default").limits.window == window
