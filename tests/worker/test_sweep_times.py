"""When an account is swept next, what is learned of how long its trainings take, and that looks put off no limit."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from finetune_queue.contract import JobState
from finetune_queue.store import CallClass, Change, keys
from finetune_queue.store.room import room_score_floor
from support.bench import Bench, sweep
from support.until import until


def next_sweep_in(bench: Bench) -> float:
    client = bench.container.jobs._redis
    seconds, micros = client.time()
    return float(client.hget(keys.account("default"), "sweep_at") or 0) / 1000 - seconds - micros / 1e6


def test_a_busy_budget_is_looked_at_less_often(bench: Bench) -> None:
    bench.trained(2, training_seconds=600)
    sweep(bench.container, "default")
    assert next_sweep_in(bench) < 3  # half of 50 calls a minute
    client = bench.container.jobs._redis
    client.zadd(keys.room("default"), {"somebody": room_score_floor(CallClass.SUBMIT)})
    sweep(bench.container, "default")
    assert next_sweep_in(bench) < 3
    free = 50 - client.zcard(keys.slots("default"))
    client.zadd(keys.slots("default"), {f"call-{number}": 9e15 for number in range(free - 1)})
    sweep(bench.container, "default")
    assert 55 < next_sweep_in(bench) <= 61  # 2 % of them, see the settings

    accounts = bench.container.accounts
    limits = accounts.status("default").limits
    accounts.configure("default", replace(limits, max_training=2))
    client.zrem(keys.slots("default"), "call-0")  # for the look itself
    sweep(bench.container, "default")
    assert next_sweep_in(bench) < 3  # it waits for a training to end, which only a look shows


def test_the_usual_training_time_is_learned_and_used(bench: Bench) -> None:
    jobs = bench.trained(2, list_carries_weights_url=True)
    client = bench.container.jobs._redis
    for job in jobs:
        client.hset(keys.job(job.id), "submitted_ms", str(int(job.created_ms - 1_200_000)))
    sweep(bench.container, "default")
    usual = bench.container.accounts.status("default").usual_training
    assert usual == pytest.approx(1200, abs=30)

    bench.trained(2, training_seconds=1200)
    sweep(bench.container, "default")
    assert 140 < next_sweep_in(bench) <= 155  # an eighth of it: nothing ends so early


def test_nothing_is_learned_from_a_training_that_was_seen_to_be_over_before(bench: Bench) -> None:
    for job in bench.trained(2):
        bench.container.jobs.transition(bench.read(job), Change(delay=60), wants_details=True)
    sweep(bench.container, "default")
    assert bench.container.accounts.status("default").usual_training is None


def test_nothing_is_learned_from_a_training_that_a_person_named(bench: Bench) -> None:
    """It may have begun long before it became the job's."""
    jobs = bench.trained(2, list_carries_weights_url=True)
    for job in jobs:
        bench.container.jobs._redis.hdel(keys.job(job.id), "submitted_ms", "intent_ms")
    sweep(bench.container, "default")
    assert {bench.read(job).state for job in jobs} == {JobState.DOWNLOADING}
    assert bench.container.accounts.status("default").usual_training is None


def test_sweeps_that_see_a_training_do_not_put_off_its_limit(bench: Bench) -> None:
    jobs = bench.trained(2, training_seconds=600)
    for job in jobs:
        bench.run(job)
    late, well = (bench.read(job) for job in jobs)
    bench.let_stay(late, bench.container.settings.finetune_training_limit)

    sweep(bench.container, "default")

    assert list(bench.container.deadlines.due(10, handover=1)[0]) == [late.id]
    bench.run(late)
    assert bench.error(late).code == "training_too_long"
    assert bench.read(well).state is JobState.TRAINING


def test_sweeps_that_see_a_training_do_not_put_off_the_caller_s_deadline(bench: Bench) -> None:
    bench.sandbox.control.change_settings(training_seconds=600)
    job = bench.submitting(deadline=datetime.now(UTC) + timedelta(seconds=3))
    bench.run(job)
    bench.run(job)
    sweep(bench.container, "default")
    until(lambda: list(bench.container.deadlines.due(10, handover=60)[0]) == [job.id], seconds=30)
    bench.run(job)
    error = bench.error(job)
    assert error.code == "deadline_passed"
    assert "finetune retry" in error.action


def test_a_training_seen_in_time_is_put_off(bench: Bench) -> None:
    jobs = bench.trained(2, training_seconds=600)
    for job in jobs:
        bench.run(job)
    client = bench.container.jobs._redis
    for job in jobs:
        client.zadd(keys.deadlines(), {job.id: 0})
    sweep(bench.container, "default")
    assert bench.container.deadlines.due(10, handover=1)[0] == {}
