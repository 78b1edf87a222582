"""What a dead worker or a lost message leaves: the job goes on, once, from where it was."""

from typing import Any

import pytest
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from finetune_queue.contract import EventType, JobRecord, JobState, Stage, WaitReason
from finetune_queue.store import TAKEOVERS, AccountLimits, Change, LiveWorker, RedisError, keys
from finetune_worker.stages.reconcile import Undecided, reconcile
from finetune_worker.stages.whose import Sightings
from support.bench import Bench
from support.driver import Driver, Message
from support.full import full
from support.until import until


def make_due(bench: Bench, job: JobRecord) -> None:
    bench.container.jobs._redis.zadd(keys.deadlines(), {job.id: 0})


def test_a_registered_job_whose_message_was_lost_is_started(bench: Bench, driver: Driver) -> None:
    job = bench.job()
    make_due(bench, job)

    driver.dispatcher.step()

    assert driver.post.messages == [Message(job.id, (Stage.UPLOAD, Stage.SUBMIT))]
    assert bench.read(job).state is JobState.UPLOADING
    assert [event.kind for event in bench.container.jobs.events(job.id)] == [EventType.ACCEPTED, EventType.UPLOADING]


def test_a_job_that_ended_while_it_was_taken_gets_no_new_deadline(bench: Bench, driver: Driver) -> None:
    job = bench.job()
    ended = bench.container.jobs.transition(job, Change(), to=JobState.CANCELLED)
    client = bench.container.jobs._redis
    client.zadd(keys.deadlines(), {job.id: 0})  # as if it had been taken just before it ended

    driver.dispatcher.step()

    assert driver.post.messages == []
    assert bench.read(job) == ended


@pytest.mark.parametrize("to", [JobState.NEEDS_ATTENTION, None], ids=["left to a person", "its worker died"])
def test_a_cancel_asked_of_a_worker_that_could_not_heed_it_is_not_forgotten(
    bench: Bench, driver: Driver, to: JobState | None
) -> None:
    jobs = bench.container.jobs
    job = jobs.transition(bench.submitting(), Change(delay=60), owner="w", intent_ms=1)
    assert jobs.request_cancel(job.id)
    if to is not None:
        jobs.transition(job, Change(delay=60), to=to, owner="")
    else:
        make_due(bench, job)

    driver.dispatcher.step()

    job = bench.read(job)
    assert (job.state, job.owner) == (JobState.CANCELLED, "")
    assert driver.post.messages == []


def test_an_account_that_redis_has_forgotten_is_told_again_and_a_stricter_limit_is_kept(
    bench: Bench, driver: Driver
) -> None:
    accounts = bench.container.accounts
    driver.dispatcher.announce()
    theirs = AccountLimits(calls=7, window=60.0)
    bench.container.workers.seen(LiveWorker("other:1", "0.1.0", ("default",), limits=(("default", theirs),)))
    driver.dispatcher.step()
    assert accounts.status("default").limits.calls == 7

    bench.container.jobs._redis.flushdb()
    driver.dispatcher.step()
    assert accounts.status("default").limits.calls == 50


def test_a_job_that_ends_its_workers_is_set_aside_after_some(bench: Bench, driver: Driver) -> None:
    job = bench.container.jobs.transition(bench.job(), Change(delay=60), to=JobState.UPLOADING)
    most = bench.container.settings.finetune_max_attempts
    for number in range(1, most):
        bench.container.jobs.transition(bench.read(job), Change(delay=0), owner="died")
        driver.dispatcher.step()
        assert (bench.read(job).takeovers, bench.read(job).owner) == (number, "")
    bench.container.jobs.transition(bench.read(job), Change(delay=0), owner="died")
    with capture_logs([merge_contextvars]) as logs:
        driver.dispatcher.step()

    job = bench.read(job)
    assert [line["event"] for line in logs] == ["lease_expired", "job_set_aside"]
    assert all((line["job_id"], line["account"]) == (job.id, job.account) for line in logs)
    assert (job.state, job.failed_stage) == (JobState.FAILED, Stage.UPLOAD)
    assert bench.error(job).code == "worker_lost"
    assert f"{most} workers died or stalled" in bench.error(job).message
    assert len(driver.post.messages) == most - 1


def test_outages_of_redis_are_no_deaths_of_workers(bench: Bench, driver: Driver) -> None:
    jobs = bench.container.jobs
    job = jobs.transition(bench.job(), Change(delay=60), to=JobState.UPLOADING)
    for _ in range(bench.container.settings.finetune_max_attempts):
        jobs.transition(bench.read(job), Change(delay=0), owner="lives")
        with full(jobs._redis), pytest.raises(RedisError):
            driver.dispatcher.step()
        until(lambda: bench.container.deadlines.now_ms() > bench.read(job).updated_ms, seconds=30)
        driver.dispatcher.step()
        assert (bench.read(job).takeovers, bench.read(job).owner) == (0, "")

    jobs.transition(bench.read(job), Change(delay=0), owner="died")
    driver.dispatcher.step()
    assert bench.read(job).takeovers == 1
    bench.container.counters.send()
    assert bench.container.counters.read()[TAKEOVERS][()].value == 1


def test_a_stage_that_ends_well_makes_earlier_deaths_forgotten(bench: Bench, driver: Driver) -> None:
    job = bench.submitting()
    bench.container.jobs.transition(bench.read(job), Change(delay=0), owner="died")
    driver.dispatcher.step()
    assert bench.read(job).takeovers == 1
    driver.deliver(driver.post.messages[0])
    assert bench.read(job).takeovers == 0


def test_a_job_that_may_have_been_paid_for_is_shown_to_a_person_instead(bench: Bench, driver: Driver) -> None:
    job = bench.submitting()
    most = bench.container.settings.finetune_max_attempts
    change = Change(delay=0)
    bench.container.jobs.transition(bench.read(job), change, owner="died", intent_ms=1, takeovers=most - 1)

    driver.dispatcher.step()

    job = bench.read(job)
    assert job.state is JobState.NEEDS_ATTENTION
    assert job.tracked
    assert "workers died or stalled" in job.evidence[-1]


def test_a_job_that_ends_its_workers_while_they_look_at_what_was_named_waits_for_another_word(
    bench: Bench, driver: Driver
) -> None:
    most = bench.container.settings.finetune_max_attempts
    fields: dict[str, Any] = {"owner": "died", "intent_ms": 1, "adopting": "ft-1", "takeovers": most - 1}
    job = bench.container.jobs.transition(bench.submitting(), Change(delay=0), **fields)

    driver.dispatcher.step()

    job = bench.read(job)
    assert (job.state, job.adopting) == (JobState.NEEDS_ATTENTION, None)
    undecided = Undecided(bench.container, job.account)
    seen = reconcile(bench.container, job, Sightings(), undecided, asked_ms=job.updated_ms, complete=True)
    assert seen == "not seen"  # the sweeps go on looking for it


def test_a_cancel_that_its_worker_never_saw_is_done_when_the_job_is_due(bench: Bench, driver: Driver) -> None:
    job = bench.container.jobs.transition(bench.job(), Change(delay=0), to=JobState.UPLOADING)
    job = bench.container.jobs.transition(job, Change(delay=0), owner="died")
    assert bench.container.jobs.request_cancel(job.id)

    driver.step()

    assert bench.read(job).state is JobState.CANCELLED


def test_a_job_that_waits_for_a_person_is_left_to_them(bench: Bench, driver: Driver) -> None:
    job = bench.submitting()
    job = bench.container.jobs.transition(
        bench.read(job), Change(delay=0), to=JobState.NEEDS_ATTENTION, intent_ms=1, waiting_for=WaitReason.PROVIDER
    )
    driver.step()
    assert "nothing to do" in driver.deliver(Message(job.id, tuple(Stage)[1:]))
    assert bench.read(job).state is JobState.NEEDS_ATTENTION
    assert bench.submits() == 0
