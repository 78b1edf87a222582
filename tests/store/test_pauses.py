"""An account's pauses: of all its calls, with one probe after it, and of its submits alone."""

from typing import Any

import pytest

from finetune_queue.contract import WaitReason
from finetune_queue.store import (
    SWEEP,
    AccountLimits,
    Accounts,
    Budget,
    CallClass,
    JobStore,
    Slot,
    keys,
)
from finetune_queue.store.clock import server_ms
from support.calls import ANYTIME, parked, refused, take


def over(client: Any) -> None:
    """Let the account's pause be over."""
    client.hset(keys.account("default"), "paused_until", "0")


def test_a_pause_stops_all_then_lets_one_probe_go_first(budget: Budget, client: Any) -> None:
    call = take(budget)
    assert budget.pause(call, "429", 30.0) >= 30.0
    assert refused(budget).reason is WaitReason.PAUSED

    over(client)
    probe = take(budget)
    assert refused(budget).reason is WaitReason.PAUSED
    budget.end(probe)
    take(budget)


def test_a_call_from_before_the_pause_that_went_well_does_not_spare_the_probe(budget: Budget, client: Any) -> None:
    refused_one, good_one = take(budget), take(budget)
    budget.pause(refused_one, "429", 30.0)
    budget.end(good_one)
    client.delete(keys.slots("default"))
    over(client)
    take(budget)
    assert refused(budget).reason is WaitReason.PAUSED


def test_slots_reserved_before_a_pause_do_not_go_as_probes_after_it(
    budget: Budget, jobs: JobStore, client: Any
) -> None:
    call = take(budget)
    handed_out = [parked(jobs) for _ in range(2)]
    assert len(budget.reserve("default", 10)[0]) == 2
    budget.pause(call, "503", None)
    over(client)
    take(budget, handed_out[0].id)
    assert refused(budget, handed_out[1].id).reason is WaitReason.PAUSED


def test_a_probe_that_was_not_sent_lets_one_other_go(budget: Budget, accounts: Accounts, client: Any) -> None:
    accounts.configure("default", AccountLimits(calls=10, window=60.0))
    budget.pause(take(budget), "503", None)
    over(client)
    budget.end_without_news(take(budget))
    take(budget)
    assert refused(budget).reason is WaitReason.PAUSED


def test_so_does_one_that_timed_out_though_its_own_slot_stays_taken(
    budget: Budget, accounts: Accounts, client: Any
) -> None:
    accounts.configure("default", AccountLimits(calls=10, window=60.0))
    budget.pause(take(budget), "503", None)
    over(client)
    call = take(budget)
    before = client.zscore(keys.slots("default"), call.token)
    budget.end_without_news(call, under_way=True)
    assert client.zscore(keys.slots("default"), call.token) == before
    take(budget)


def test_one_from_before_the_pause_that_was_not_sent_lets_nobody_go_beside_the_probe(
    budget: Budget, accounts: Accounts, client: Any
) -> None:
    accounts.configure("default", AccountLimits(calls=10, window=60.0))
    before = take(budget)
    budget.pause(take(budget), "503", None)
    over(client)
    probe = take(budget)
    budget.end_without_news(before)
    assert refused(budget).reason is WaitReason.PAUSED
    budget.end_without_news(probe)
    take(budget)


def test_a_submit_from_before_their_refusal_that_was_not_sent_lets_none_go_beside_the_one_that_tries(
    budget: Budget, accounts: Accounts, client: Any
) -> None:
    accounts.configure("default", AccountLimits(calls=10, window=60.0))
    before = take(budget, "a", submit=True)
    budget.refuse_submits(take(budget, "b", submit=True), "no credits", None, code="credits_exhausted")
    client.hset(keys.account("default"), "submits_paused_until", "0")
    trying = take(budget, "c", submit=True)
    budget.end_without_news(before)
    assert refused(budget, "d", submit=True).reason is WaitReason.PAUSED
    budget.end_without_news(trying)
    take(budget, "d", submit=True)


def test_nor_does_a_probe_that_ends_when_it_was_given_up_and_another_was_handed_its_turn(
    budget: Budget, accounts: Accounts, jobs: JobStore, client: Any
) -> None:
    accounts.configure("default", AccountLimits(calls=10, window=60.0))
    budget.pause(take(budget), "503", None)
    over(client)
    given_up = take(budget)
    client.hset(keys.account("default"), "probe_until", "0")
    parked(jobs)
    assert len(budget.reserve("default", 10)[0]) == 1
    budget.end_without_news(given_up)
    assert refused(budget).reason is WaitReason.PAUSED


def test_nor_a_submit_that_tried_and_was_given_up(
    budget: Budget, accounts: Accounts, jobs: JobStore, client: Any
) -> None:
    accounts.configure("default", AccountLimits(calls=10, window=60.0))
    budget.refuse_submits(take(budget, "a", submit=True), "no credits", None, code="credits_exhausted")
    client.hset(keys.account("default"), "submits_paused_until", "0")
    given_up = take(budget, "b", submit=True)
    client.hset(keys.account("default"), "submits_probe_until", "0")
    parked(jobs)
    assert len([each for each in budget.reserve("default", 10)[0] if each != SWEEP]) == 1
    budget.end_without_news(given_up)
    assert refused(budget, "c", submit=True).reason is WaitReason.PAUSED


def test_a_pause_is_one_account_s_own(budget: Budget, accounts: Accounts) -> None:
    accounts.configure("other", AccountLimits(calls=3, window=60.0))
    budget.pause(take(budget), "429", 120.0)
    assert refused(budget).reason is WaitReason.PAUSED
    assert isinstance(budget.take("other", "h", ANYTIME), Slot)


@pytest.mark.parametrize("jitter", [0.0, 1.0])
def test_pauses_without_a_retry_after_grow_and_are_capped(
    budget: Budget, client: Any, monkeypatch: pytest.MonkeyPatch, jitter: float
) -> None:
    monkeypatch.setattr("random.random", lambda: jitter)
    lengths = []
    for _ in range(6):
        client.delete(keys.slots("default"))
        over(client)
        client.hdel(keys.account("default"), "probe_until")
        lengths.append(budget.pause(take(budget), "503", None))
    assert lengths == [seconds * (1 + jitter / 4) for seconds in (1, 2, 4, 8, 8, 8)]


def test_calls_that_fail_together_count_as_one_failure_and_do_not_draw_out_the_pause(
    budget: Budget, client: Any
) -> None:
    calls = [take(budget) for _ in range(3)]
    first = budget.pause(calls[0], "503", None)
    soon = server_ms(client) + 500
    client.hset(keys.account("default"), "paused_until", soon)
    assert budget.pause(calls[1], "503", None) <= first
    assert budget.pause(calls[2], "503", None) <= first
    assert client.hget(keys.account("default"), "paused_until") == str(soon)


def test_so_do_those_that_are_each_told_how_long_to_wait(budget: Budget, client: Any) -> None:
    for call in [take(budget) for _ in range(3)]:
        budget.pause(call, "429", 30.0)
    client.delete(keys.slots("default"))
    over(client)
    assert budget.pause(take(budget), "503", None) <= 2.5  # the second failure


def test_a_call_that_is_told_to_wait_less_than_the_pause_waits_for_its_end(budget: Budget) -> None:
    long, short = take(budget), take(budget)
    budget.pause(long, "429", 30.0)
    assert budget.pause(short, "429", 1.0) > 29.0


def test_one_probe_is_reserved_after_a_pause(budget: Budget, jobs: JobStore, client: Any) -> None:
    call = take(budget)
    waiting = [parked(jobs) for _ in range(3)]
    budget.pause(call, "503", None)
    holders, wait = budget.reserve("default", 10)
    assert holders == []
    assert wait is not None
    assert 0.5 < wait <= 1.25

    over(client)
    holders, _ = budget.reserve("default", 10)
    assert holders == [waiting[0].id]
    assert budget.reserve("default", 10)[0] == []
    budget.end(take(budget, waiting[0].id))
    assert budget.reserve("default", 10)[0] == [waiting[1].id]


def test_refused_submits_pause_submits_alone_and_one_tries_at_a_time(
    budget: Budget, accounts: Accounts, client: Any
) -> None:
    accounts.configure("default", AccountLimits(calls=20, window=60.0))

    def pause_over() -> None:
        client.hset(keys.account("default"), "submits_paused_until", "0")

    lengths = [budget.refuse_submits(take(budget, "a", submit=True), "no credits", None, code="credits_exhausted")]
    for _ in range(2):
        assert refused(budget, "b", submit=True).reason is WaitReason.PAUSED
        budget.end(take(budget, "c"))  # a presign, or a sweep
        assert refused(budget, "b", submit=True).reason is WaitReason.PAUSED
        status = accounts.status("default")
        assert (status.unwell, status.pause_reason, status.paused_for) == ("credits_exhausted", "no credits", 0)
        pause_over()
        trying = take(budget, "b", submit=True)
        assert refused(budget, "d", submit=True).reason is WaitReason.PAUSED
        lengths.append(budget.refuse_submits(trying, "no credits", None, code="credits_exhausted"))
    assert lengths[0] * 1.5 < lengths[1] < lengths[2]

    pause_over()
    budget.end_without_news(take(budget, "b", submit=True))  # shows nothing: another may try
    budget.end(take(budget, "d", submit=True))
    assert accounts.status("default").unwell == ""
    for holder in ("e", "f"):
        take(budget, holder, submit=True)


def test_a_refused_submit_shows_that_the_provider_is_well(budget: Budget, accounts: Accounts, client: Any) -> None:
    budget.pause(take(budget), "503", None)
    over(client)
    budget.refuse_submits(take(budget, submit=True), "no credits", None, code="credits_exhausted")
    status = accounts.status("default")
    assert (status.probing, status.submits_refused) == (False, True)
    take(budget, "a")


def test_of_refused_submits_one_is_handed_out_at_a_time_and_all_else(
    budget: Budget, jobs: JobStore, accounts: Accounts, client: Any
) -> None:
    accounts.configure("default", AccountLimits(calls=20, window=60.0))
    submits = [parked(jobs) for _ in range(2)]
    budget.refuse_submits(take(budget, "a", submit=True), "no credits", None, code="credits_exhausted")
    prepares = [parked(jobs, CallClass.PREPARE) for _ in range(2)]
    handed_out, wait = budget.reserve("default", 10)
    assert [each for each in handed_out if each != SWEEP] == [job.id for job in prepares]
    assert wait is not None
    assert 0.0 < wait <= 1.25

    client.hset(keys.account("default"), "submits_paused_until", "0")
    assert budget.reserve("default", 10)[0] == [submits[0].id]
    assert budget.reserve("default", 10)[0] == []
    budget.end(take(budget, submits[0].id, submit=True))
    assert budget.reserve("default", 10)[0] == [submits[1].id]


def test_what_was_handed_out_before_a_refused_submit_goes_on_but_for_submits(
    budget: Budget, jobs: JobStore, accounts: Accounts, client: Any
) -> None:
    accounts.configure("default", AccountLimits(calls=20, window=60.0))
    call = take(budget, "a", submit=True)
    client.hset(keys.account("default"), "sweep_at", "0")
    submit, prepare = parked(jobs), parked(jobs, CallClass.PREPARE)
    assert budget.reserve("default", 10)[0] == [SWEEP, submit.id, prepare.id]
    budget.refuse_submits(call, "no credits", None, code="credits_exhausted")
    assert isinstance(budget.take_to_sweep("default", 60.0), Slot)

    client.hset(keys.account("default"), "submits_paused_until", "0")
    take(budget, "b", submit=True)
    assert refused(budget, submit.id, submit=True).reason is WaitReason.PAUSED


def test_to_resume_an_account_ends_what_was_refused_it_and_wakes_a_dispatcher(
    budget: Budget, accounts: Accounts, client: Any
) -> None:
    budget.refuse_submits(take(budget, "a", submit=True), "no credits", None, code="credits_exhausted")
    client.delete(keys.wake())
    accounts.stop_submits("default", stopped=False)
    assert client.llen(keys.wake()) == 1
    assert accounts.status("default").unwell == ""
    for holder in ("b", "c"):
        take(budget, holder, submit=True)
