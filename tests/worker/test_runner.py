"""What all stages share: claims, fencing, cancels, deadlines, attempts."""

from datetime import UTC, datetime, timedelta

import pytest
from structlog.testing import capture_logs

from finetune_queue.contract import JobError, JobRecord, JobState, Stage, WaitReason
from finetune_queue.store import Change, ConflictError
from finetune_worker.container import Container
from finetune_worker.stages.claim import Claim
from finetune_worker.stages.conclude import StageResult
from finetune_worker.stages.outcome import Attention, Done, Fail, Outcome, Retry, Wait
from finetune_worker.stages.runner import StageFunction, run_stage
from support.bench import Bench
from support.until import until

ERROR = JobError(code="x", stage="upload", message="It broke.", retryable=True)


def run(bench: Bench, job: JobRecord, function: StageFunction) -> StageResult:
    return run_stage(bench.container, Stage.UPLOAD, function, job.id, "task-1")


def test_a_stage_that_is_done_hands_over_and_the_chain_goes_on(bench: Bench) -> None:
    job = bench.job()
    job = bench.container.jobs.transition(job, Change(delay=60), to=JobState.UPLOADING)
    result = run(bench, job, lambda *_: Done("put", to=JobState.SUBMITTING, fields={"dataset_url": "https://x/y"}))
    job = bench.read(job)
    assert (result.sentence, result.proceed) == ("put", True)
    assert (job.state, job.owner, job.dataset_url) == (JobState.SUBMITTING, "", "https://x/y")


def test_only_one_of_two_workers_runs_a_stage(bench: Bench) -> None:
    job = bench.job()
    inner: list[StageResult] = []

    def stage(container: Container, claim: Claim) -> Outcome:
        inner.append(run(bench, job, lambda *_: pytest.fail("two workers ran the stage")))
        return Wait("w", WaitReason.BACKOFF, 10)

    run(bench, job, stage)
    assert inner[0].sentence == "nothing to do: another worker has the job"


def test_an_overtaken_worker_cannot_write(bench: Bench) -> None:
    job = bench.job()

    def stage(container: Container, claim: Claim) -> Outcome:
        # Its lease ran out and the dispatcher gave the job to somebody else.
        container.jobs.transition(claim.job, Change(delay=60), owner="")
        with pytest.raises(ConflictError):
            claim.write(dataset_url="stale")
        return Fail(ERROR)

    result = run(bench, job, stage)
    assert "refused" in result.sentence
    assert bench.read(job).state is JobState.ACCEPTED


def test_a_retry_uses_an_attempt_and_the_last_one_fails_the_job(bench: Bench) -> None:
    job = bench.job()
    tries = bench.container.settings.finetune_max_attempts
    for attempt in range(1, tries):
        run(bench, job, lambda *_: Retry(ERROR))
        assert bench.read(job).attempts == attempt
        assert bench.read(job).waiting_for is WaitReason.BACKOFF
    result = run(bench, job, lambda *_: Retry(ERROR))
    job = bench.read(job)
    assert (job.state, job.error, job.failed_stage) == (JobState.FAILED, ERROR, Stage.UPLOAD)
    assert not result.proceed


def test_an_outage_uses_no_attempt_and_is_over_with_another_failure(bench: Bench) -> None:
    job = bench.job()
    for outage, counted in (True, (0, 1)), (True, (0, 2)), (False, (1, 0)), (True, (1, 1)):
        run(bench, job, lambda *_, outage=outage: Retry(ERROR, outage=outage))
        assert (bench.read(job).attempts, bench.read(job).outages) == counted


def test_what_went_wrong_is_logged_as_a_warning(bench: Bench) -> None:
    outcomes = (Wait("w", WaitReason.BACKOFF, 10), Retry(ERROR), Fail(ERROR), Attention("look", "it may be paid"))
    for outcome, level in zip(outcomes, ("info", "warning", "warning", "warning"), strict=True):
        job = bench.submitting() if isinstance(outcome, Attention) else bench.job()
        with capture_logs() as logs:
            run_stage(bench.container, job.stage, lambda *_, given=outcome: given, job.id, "task-1")
        assert [line["log_level"] for line in logs if line["event"] == "stage_finished"] == [level], outcome


def test_a_wait_uses_no_attempt(bench: Bench) -> None:
    job = bench.job()
    run(bench, job, lambda *_: Wait("w", WaitReason.API_SLOT, 10, room_score=1.0))
    job = bench.read(job)
    assert (job.attempts, job.waiting_for, job.owner) == (0, WaitReason.API_SLOT, "")
    assert bench.container.accounts.place(job) == 0


@pytest.mark.parametrize("outcome", [Wait("w", WaitReason.API_SLOT, 3600, room_score=1.0), Retry(ERROR, after=3600)])
def test_a_job_waits_no_longer_than_its_caller_does(bench: Bench, outcome: Outcome) -> None:
    job = bench.job(deadline=datetime.now(UTC) + timedelta(seconds=60))
    run(bench, job, lambda *_: outcome)
    assert 30_000 < bench.due_ms(job) - bench.read(job).updated_ms <= 60_000


def test_a_defect_of_ours_ends_in_the_job_and_not_in_a_traceback_alone(bench: Bench) -> None:
    job = bench.job()

    def stage(container: Container, claim: Claim) -> Outcome:
        raise ZeroDivisionError

    result = run(bench, job, stage)
    assert "ZeroDivisionError" in result.sentence
    assert bench.error(job).code == "internal_error"


def test_a_cancel_while_a_stage_runs_takes_effect_at_its_next_sign_of_life(bench: Bench) -> None:
    job = bench.job()

    def stage(container: Container, claim: Claim) -> Outcome:
        assert container.jobs.request_cancel(job.id)
        claim._last_sign = -1e9
        claim.progress(1, 2)
        raise AssertionError("it went on")

    result = run(bench, job, stage)
    assert bench.read(job).state is JobState.CANCELLED
    assert result.sentence == "cancelled: nothing had been submitted"


def test_a_worker_that_stops_gives_a_long_stage_s_job_back_at_once(bench: Bench) -> None:
    job = bench.job()
    bench.change_settings(finetune_shutdown_timeout=0.2)

    def stage(container: Container, claim: Claim) -> Outcome:
        claim.progress(1, 3)
        container.stop_soon()
        claim.progress(2, 3)  # it still has its time
        until(container.out_of_time, seconds=30)
        claim.progress(3, 3)
        raise AssertionError("it went on")

    result = run(bench, job, stage)

    job = bench.read(job)
    assert "this worker is stopping" in result.sentence
    assert (job.owner, job.attempts, job.takeovers) == ("", 0, 0)
    assert job.id in bench.container.deadlines.due(10, handover=1)[0]


def test_a_passed_deadline_fails_the_job_before_anything_is_paid(bench: Bench) -> None:
    job = bench.job(deadline=datetime.now(UTC) - timedelta(seconds=1))
    run(bench, job, lambda *_: pytest.fail("the stage ran"))
    assert bench.error(job).code == "deadline_passed"


def test_a_message_of_an_earlier_stage_does_nothing(bench: Bench) -> None:
    job = bench.submitting()
    result = run(bench, job, lambda *_: pytest.fail("the stage ran"))
    assert result.sentence == "nothing to do: the job is submitting"


def test_a_message_of_a_job_that_is_gone_says_so(bench: Bench) -> None:
    result = run_stage(bench.container, Stage.UPLOAD, lambda *_: pytest.fail("ran"), "no-such-job", "task-1")
    assert "There is no job no-such-job" in result.sentence
