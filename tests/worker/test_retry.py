"""What a person does to a job: cancel and retry, at any moment."""

from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_queue.contract import JobRecord, JobState, Stage, WaitReason
from finetune_queue.sdk import FineTuneQueue
from finetune_queue.store import Change
from finetune_worker.container import Container
from finetune_worker.stages.cadence import began_ms
from finetune_worker.stages.claim import Claim
from finetune_worker.stages.outcome import Outcome, Wait
from finetune_worker.stages.runner import run_stage
from support.bench import Bench, sweep
from support.driver import Driver
from support.until import until


def fail(bench: Bench, job: JobRecord, stage: Stage, **fields: Any) -> JobRecord:
    return bench.container.jobs.transition(
        bench.read(job), Change(), to=JobState.FAILED, failed_stage=stage, owner="", **fields
    )


def test_a_retry_after_the_caller_s_deadline_has_none_and_fetches_what_was_paid(
    bench: Bench, queue: FineTuneQueue
) -> None:
    job = bench.submitting(deadline=datetime.now(UTC) + timedelta(seconds=2))
    bench.run(job)
    until(lambda: bench.read(job).request.expired(datetime.now(UTC)), seconds=30)
    bench.run(job)
    assert bench.error(job).code == "deadline_passed"

    retried = queue.retry(job.id)

    assert retried.record.request.deadline is None
    # A repeat of the caller's key, or of its message, is no other request.
    assert bench.container.jobs.register(job.id, job.request, delay=60) == (retried.record, False)
    bench.until_trained()
    sweep(bench.container, "default")
    bench.run(job)
    assert bench.read(job).state is JobState.DOWNLOADING
    assert bench.submits() == 1


def test_a_retried_training_is_waited_for_as_long_again_and_began_when_it_did(
    bench: Bench, queue: FineTuneQueue
) -> None:
    bench.sandbox.control.change_settings(training_seconds=600)
    job = bench.submitting()
    bench.run(job)
    submitted_ms = bench.read(job).submitted_ms
    bench.let_stay(job, bench.container.settings.finetune_training_limit)
    bench.run(job)
    assert "was not over after 6 h" in bench.error(job).message

    queue.retry(job.id)
    bench.run(job)

    job = bench.read(job)
    assert job.state is JobState.TRAINING
    assert (job.submitted_ms, began_ms(job)) == (submitted_ms, submitted_ms)


def test_a_retry_does_not_submit_again_what_may_have_been_paid(bench: Bench, queue: FineTuneQueue) -> None:
    bench.sandbox.control.add_fault(op="submit", kind="reply_lost")
    job = bench.submitting()
    bench.run(job)
    fail(bench, job, Stage.SUBMIT)

    retried = queue.retry(job.id)

    assert retried.record.intent_ms is not None
    bench.run(job)
    assert bench.submits() == 1
    bench.end_pause()
    sweep(bench.container, "default")
    assert bench.read(job).finetune_id == bench.sandbox.control.trainings()[0]["finetune_id"]


def test_a_retry_after_a_failed_training_pays_a_new_one_and_does_not_find_the_old(
    bench: Bench, queue: FineTuneQueue
) -> None:
    bench.sandbox.control.change_settings(training_seconds=600)
    job = bench.submitting()
    bench.run(job)
    first = bench.finetune_id(job)
    bench.sandbox.control.change_training(first, fail="no faces found")
    sweep(bench.container, "default")
    assert bench.read(job).failed_stage is Stage.SUBMIT
    queue.retry(job.id)
    bench.sandbox.control.add_fault(op="submit", kind="reply_lost")
    bench.run(job)
    bench.end_pause()

    sweep(bench.container, "default")

    assert bench.finetune_id(job) != first
    assert bench.submits() == 2


def test_a_retried_job_starts_with_a_clean_slate(bench: Bench, queue: FineTuneQueue) -> None:
    job = bench.submitting()
    fail(bench, job, Stage.UPLOAD, attempts=8, takeovers=8, cancel_requested=True)
    record = queue.retry(job.id).record
    assert (record.attempts, record.takeovers, record.cancel_requested) == (0, 0, False)


def test_a_cancel_asked_for_while_a_stage_parks_is_done_at_once(bench: Bench, queue: FineTuneQueue) -> None:
    job = bench.job()

    def stage(container: Container, claim: Claim) -> Outcome:
        assert queue.cancel(job.id).state is JobState.ACCEPTED
        return Wait("parked", WaitReason.API_SLOT, 3600, room_score=1.0)

    run_stage(bench.container, Stage.UPLOAD, stage, job.id, "task-1")

    assert Driver(bench.container).until_ended(job.id, seconds=5).state is JobState.CANCELLED


def test_a_cancel_of_a_training_goes_through_although_sweeps_put_the_job_off(
    bench: Bench, queue: FineTuneQueue
) -> None:
    bench.sandbox.control.change_settings(training_seconds=600)
    job = bench.submitting()
    bench.run(job)
    held = bench.container.jobs.transition(bench.read(job), Change(delay=60), owner="task-1")
    queue.cancel(job.id)
    bench.container.jobs.transition(held, Change(delay=900), owner="", waiting_for=WaitReason.PROVIDER)
    driver = Driver(bench.container)
    until(lambda: driver.step() >= 0 and bench.read(job).state is JobState.CANCELLED, seconds=30)
