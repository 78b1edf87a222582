"""The account's budget: slots, the waiting room, pauses and caps."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from finetune_queue.contract import JobState, WaitReason, new_job_id
from finetune_queue.store import (
    SWEEP,
    AccountLimits,
    Accounts,
    Budget,
    CallClass,
    Change,
    JobStore,
    RedisError,
    SweepClock,
    UnknownAccountError,
    connect,
    keys,
    room_score,
)
from finetune_queue.store.clock import server_ms
from support.calls import expire_slots, parked, refused, take
from support.samples import sample_request


def test_no_more_calls_than_the_limit(budget: Budget) -> None:
    for _ in range(3):
        take(budget)
    assert refused(budget).reason is WaitReason.API_SLOT


def test_a_slot_counts_until_a_window_after_its_call_ended(budget: Budget, client: Any) -> None:
    """And a thousandth of the window and a millisecond more, for clocks that run at different speeds."""
    window = 60_000 + 60 + 1
    call = take(budget)
    [(_, while_open)] = client.zrange(keys.slots("default"), 0, -1, withscores=True)
    assert while_open == call.at_ms + 5_000 + window  # by the call's own time-out

    before = server_ms(client)
    budget.end(call)
    [(_, after)] = client.zrange(keys.slots("default"), 0, -1, withscores=True)
    assert before + window <= after <= server_ms(client) + window


def test_a_slot_that_is_kept_for_longer_counts_until_a_window_after_that(budget: Budget, client: Any) -> None:
    call = take(budget)
    [(_, taken)] = client.zrange(keys.slots("default"), 0, -1, withscores=True)
    assert budget.extend(call, 5)  # as long as it was taken for
    [(_, extended)] = client.zrange(keys.slots("default"), 0, -1, withscores=True)
    assert extended >= taken  # also the 61 ms for clocks that run at different speeds


def test_a_call_that_may_still_arrive_keeps_its_slot_as_if_its_caller_had_died(budget: Budget, client: Any) -> None:
    call = take(budget)
    before = client.zrange(keys.slots("default"), 0, -1, withscores=True)
    budget.pause(call, "timed out", None, under_way=True)
    assert client.zrange(keys.slots("default"), 0, -1, withscores=True) == before


def test_ending_a_call_whose_slot_is_long_free_takes_none(budget: Budget, client: Any) -> None:
    call = take(budget)
    client.delete(keys.slots("default"))
    budget.end(call)
    assert client.zcard(keys.slots("default")) == 0


def test_a_newcomer_does_not_overtake_those_who_wait(budget: Budget, jobs: JobStore) -> None:
    for _ in range(3):
        parked(jobs)
    newcomer, _ = jobs.register(new_job_id(), sample_request(priority=4), delay=60)

    no = refused(budget, newcomer.id, room_score(CallClass.SUBMIT, newcomer))
    assert no.ahead == 3
    take(budget, "urgent", room_score(CallClass.FINISH, newcomer))


def test_free_slots_go_to_the_best_placed_and_stay_theirs(budget: Budget, jobs: JobStore, accounts: Accounts) -> None:
    presign = parked(jobs, CallClass.PREPARE)
    late = parked(jobs, CallClass.SUBMIT)
    urgent = parked(jobs, CallClass.SUBMIT, priority=9)
    finish = parked(jobs, CallClass.FINISH, priority=0)
    assert accounts.place(presign) == 3

    holders, wait = budget.reserve("default", 10)

    assert holders == [finish.id, urgent.id, late.id]
    assert wait is not None
    assert refused(budget, presign.id).reason is WaitReason.API_SLOT
    take(budget, finish.id)
    assert budget.reserve("default", 10)[0] == []
    assert accounts.place(late) is None
    assert accounts.place(presign) == 0


def test_the_estimate_counts_the_submits_that_those_in_front_have_to_come(jobs: JobStore, accounts: Accounts) -> None:
    accounts.configure("default", AccountLimits(calls=4, window=60.0))
    parked(jobs)
    for _ in range(20):
        last = parked(jobs, CallClass.PREPARE)

    def estimate() -> float:
        ahead = accounts.place(last)
        assert ahead == 20
        return accounts.slot_in(accounts.status("default"), ahead)

    assert (
        estimate() == 9 * 60
    )  # 1 submit, 19 presigned uploads and the submits of all but the last 2: 37 calls, 9 fours
    accounts.stop_submits("default", stopped=True)
    assert estimate() == 4 * 60  # 19 presigned uploads


def test_the_estimate_counts_the_calls_of_before_a_limit_was_lowered(
    budget: Budget, accounts: Accounts, client: Any
) -> None:
    for _ in range(3):
        take(budget)
    expire_slots(client, 2)
    accounts.configure("default", AccountLimits(calls=1, window=60.0))
    assert accounts.slot_in(accounts.status("default"), 0) > 60


def test_a_reservation_that_nobody_takes_frees_the_slot_and_its_job_is_due_again(
    budget: Budget, jobs: JobStore, client: Any
) -> None:
    lost = parked(jobs)
    budget.reserve("default", 10)
    assert client.zscore(keys.deadlines(), lost.id) <= server_ms(client) + 2_000  # the handover
    expire_slots(client, 3)
    for _ in range(3):
        take(budget)
    assert refused(budget, lost.id).reason is WaitReason.API_SLOT


def test_the_first_training_is_not_swept_before_it_can_have_moved(budget: Budget, sweep_clock: SweepClock) -> None:
    take(budget, "job-1", submit=True)
    assert budget.reserve("default", 2)[0] == []
    sweep_clock.sweep_now("default")
    assert budget.reserve("default", 2)[0] == [SWEEP]


def test_looks_that_never_go_well_keep_no_job_from_trying(
    budget: Budget, jobs: JobStore, accounts: Accounts, client: Any
) -> None:
    """The list alone may be ill. Its next look may be due at the end of each pause."""
    accounts.configure("default", AccountLimits(calls=20, window=60.0))
    client.zadd(keys.tracked("default"), {"a-training": 1})
    waiting = parked(jobs)
    turns = []
    for _ in range(7):
        client.hset(keys.account("default"), mapping={"paused_until": "0", "sweep_at": "0"})
        [holder], _ = budget.reserve("default", 1)
        turns.append(holder)
        call = take(budget, holder, 0.0)
        if holder == waiting.id:
            budget.end(call)
            waiting = parked(jobs)
        else:
            budget.pause(call, "503", None)
    assert "".join("L" if turn == SWEEP else "J" for turn in turns) == "LLJLLJL"


def test_a_job_that_came_by_itself_and_tried_had_its_turn(budget: Budget, jobs: JobStore, client: Any) -> None:
    client.zadd(keys.tracked("default"), {"a-training": 1})
    parked(jobs)
    for holder in (SWEEP, SWEEP, "a job whose backoff is over", SWEEP):
        client.hset(keys.account("default"), mapping={"paused_until": "0", "sweep_at": "0"})
        client.delete(keys.slots("default"))
        if holder == SWEEP:
            assert budget.reserve("default", 1)[0] == [SWEEP]
        budget.pause(take(budget, holder, 0.0), "503", None)


def test_with_nobody_else_looks_go_on_trying(budget: Budget, client: Any) -> None:
    client.zadd(keys.tracked("default"), {"a-training": 1})
    for _ in range(3):
        client.hset(keys.account("default"), mapping={"paused_until": "0", "sweep_at": "0"})
        assert budget.reserve("default", 10)[0] == [SWEEP]
        budget.pause(take(budget, SWEEP, 0.0), "503", None)


def test_who_waits_behind_held_submits_alone_wakes_a_dispatcher(
    budget: Budget, jobs: JobStore, accounts: Accounts, client: Any
) -> None:
    accounts.stop_submits("default", stopped=True)
    for _ in range(4):
        parked(jobs)
    client.delete(keys.wake())
    job = parked(jobs, CallClass.PREPARE)
    assert client.llen(keys.wake()) == 1
    assert budget.reserve("default", 10)[0] == [job.id]

    parked(jobs, CallClass.PREPARE)
    client.delete(keys.wake())
    parked(jobs, CallClass.PREPARE)
    assert client.llen(keys.wake()) == 0  # somebody has looked since the first


def test_a_changed_limit_takes_effect_at_once(budget: Budget, accounts: Accounts, client: Any) -> None:
    for _ in range(3):
        take(budget)
    client.delete(keys.wake())
    accounts.configure("default", AccountLimits(calls=4, window=60.0))
    assert client.llen(keys.wake()) == 1  # a dispatcher that sleeps until the next free slot has something to do now
    take(budget)
    accounts.configure("default", AccountLimits(calls=2, window=60.0))
    assert refused(budget).reason is WaitReason.API_SLOT


def test_the_sweep_goes_first_when_due_and_only_while_something_trains(
    budget: Budget, jobs: JobStore, sweep_clock: SweepClock
) -> None:
    waiting = parked(jobs)
    sweep_clock.sweep_now("default")
    assert budget.reserve("default", 1)[0] == [waiting.id]

    submitting, _ = jobs.register(new_job_id(), sample_request(), delay=60)
    submitting = jobs.transition(submitting, Change(delay=60), to=JobState.UPLOADING)
    submitting = jobs.transition(submitting, Change(delay=60), to=JobState.SUBMITTING)
    assert SWEEP not in budget.reserve("default", 2)[0]

    jobs.transition(submitting, Change(delay=60), intent_ms=2)
    assert budget.reserve("default", 2)[0] == [SWEEP]
    assert budget.reserve("default", 2)[0] == []
    take(budget, SWEEP, 0.0)


def test_each_field_of_an_account_is_described_where_its_key_is(
    budget: Budget, jobs: JobStore, accounts: Accounts, sweep_clock: SweepClock, client: Any
) -> None:
    account, written = keys.account("default"), set()

    def after_the_pause() -> None:
        client.hset(account, "paused_until", "0")
        client.delete(keys.slots("default"))
        job = parked(jobs, CallClass.FINISH)
        budget.reserve("default", 1)
        take(budget, job.id)

    def one_submit_tries() -> None:
        client.hset(account, "submits_paused_until", "0")
        client.delete(keys.slots("default"))
        take(budget, "c", submit=True)

    steps: list[Callable[[], object]] = [
        lambda: accounts.stop_submits("default", stopped=True),
        lambda: accounts.stop_submits("default", stopped=False),
        lambda: budget.refuse_submits(take(budget, "a", submit=True), "no credits", None, code="credits_exhausted"),
        one_submit_tries,
        lambda: sweep_clock.sweep_now("default"),
        lambda: budget.reserve("default", 1),
        lambda: budget.take_to_sweep("default", 5.0),
        lambda: sweep_clock.swept("default", 9.0, idle=9.0, affordable=9.0, gap=9.0),
        lambda: sweep_clock.learn_training("default", 600.0),
        lambda: budget.pause(take(budget, "b"), "503", None),
        after_the_pause,
    ]
    for step in steps:
        step()
        written |= set(client.hkeys(account))

    assert written == set(re.findall(r"``(\w+)``", keys.account.__doc__ or ""))


def test_an_unreachable_budget_allows_no_call(budget: Budget, accounts: Accounts) -> None:
    with connect("redis://127.0.0.1:1/0") as nowhere:
        blind = Budget(nowhere, call_timeout=5, handover=1, first_sweep=10, backoff_base=1, backoff_max=8)
        with pytest.raises(RedisError):
            blind.take("default", "h", 0.0)


def test_an_account_that_nobody_serves_is_named(budget: Budget) -> None:
    with pytest.raises(UnknownAccountError, match=r"'other' \(known: default\)"):
        budget.take("other", "h", 0.0)
