"""Runs one stage of one job: claim it, act, write down the outcome. What all stages share is here, once."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import TypeVar

import structlog

from finetune_queue import tracing
from finetune_queue.contract import JobError, JobRecord, JobState, Stage, WaitReason
from finetune_queue.messaging import short_name, stage_task
from finetune_queue.store import (
    STAGE_SECONDS,
    ConflictError,
    JobNotFoundError,
    OwnedElsewhereError,
    RedisError,
    UnknownAccountError,
    UnreadableJobError,
)
from finetune_worker.container import Container, UnknownAccountKeyError
from finetune_worker.stages.calls import StaleCallError
from finetune_worker.stages.claim import CancelRequestedError, Claim, WorkerStoppingError
from finetune_worker.stages.conclude import StageResult, conclude
from finetune_worker.stages.errors import again
from finetune_worker.stages.outcome import Attention, Done, Fail, Outcome, Retry, Wait, after_transfer
from finetune_worker.stages.shares import NoShareError
from finetune_worker.work_folder import WorkFolderError

log = structlog.get_logger(__name__)

StageFunction = Callable[[Container, Claim], Outcome]

Result = TypeVar("Result")

OTHERS_TURN = 1.0
"""Seconds until a job whose account this worker does not have is given to any worker again."""


def run_stage(
    container: Container, stage: Stage, function: StageFunction, job_id: str, task_id: str, *, task: str | None = None
) -> StageResult:
    """Claim the job, run ``stage`` and write down the outcome; do nothing if the job is not at that stage, or another
    worker has it: a message may come twice, or late.

    ``task`` is the task's name if it is not the stage's own, as ``finetune.presign``'s: metrics and traces go by it.

    Raises:
        redis.RedisError: the store is out of reach; the job's deadline brings it back.
    """
    started = time.monotonic()
    job = read_job(container, job_id)
    if isinstance(job, str):
        return StageResult(job, proceed=False)
    if job.state.terminal or job.state is JobState.NEEDS_ATTENTION or job.stage is not stage:
        return StageResult(f"nothing to do: the job {job.state.sentence}", proceed=False)
    if job.owner:
        return StageResult("nothing to do: another worker has the job", proceed=False)
    task = task or stage_task(stage)
    with traced(job, task, job.attempts):
        return _run(container, stage, function, job, task=task, task_id=task_id, started=started)


def traced(job: JobRecord, task: str, failures: int) -> AbstractContextManager[None]:
    """Record a task's work on the job, in the job's trace."""
    about: tracing.Attributes = {tracing.JOB: job.id, tracing.ACCOUNT: job.account, "finetune.attempt": failures + 1}
    return tracing.span(task, kind="consumer", parent=job.traceparent, attributes=about)


def _run(
    container: Container,
    stage: Stage,
    function: StageFunction,
    job: JobRecord,
    *,
    task: str,
    task_id: str,
    started: float,
) -> StageResult:
    try:
        claim = Claim(container.jobs, job, task_id, container.settings.finetune_lease, container.out_of_time)
        outcome = _act(container, function, claim)
        try:
            job, result = conclude(container, claim.job, stage, outcome)
        except OwnedElsewhereError as error:
            outcome = Attention(f"needs attention: {error}", str(error))
            job, result = conclude(container, claim.job, stage, outcome)
    except ConflictError as error:
        return StageResult(claim_lost(error), proceed=False)
    if job.state.terminal:
        container.count_ended(job)
    doing, said = short_name(task), result.sentence
    record(container, doing, outcome, started, event="stage_finished", result=said, state=str(job.state))
    return result


def claim_lost(error: ConflictError) -> str:
    """Log, and say in a sentence, that the job is another worker's by now, or was cancelled: nothing that this one did
    is recorded."""
    log.warning("claim_lost", detail=str(error))
    return "the job went on without this worker, whose writes were refused"


def record(container: Container, doing: str, outcome: Outcome, started: float, *, event: str, **fields: str) -> None:
    """Count, trace and log the outcome of a task that began at ``started`` (monotonic); ``event`` and ``fields`` are
    those of the log line."""
    seconds, kind = time.monotonic() - started, type(outcome).__name__.lower()
    container.counters.observe(STAGE_SECONDS, doing, kind, seconds=seconds)
    tracing.tell({"finetune.outcome": kind})
    if isinstance(outcome, (Retry, Fail)):
        tracing.failed(outcome.error.code)
    say = log.warning if isinstance(outcome, (Retry, Fail, Attention)) else log.info
    say(event, outcome=kind, duration_s=round(seconds, 3), **fields)


def read_job(container: Container, job_id: str) -> JobRecord | str:
    """Return the job, with its account and training bound for the log; or say why this worker can do nothing for it."""
    try:
        job = container.jobs.get(job_id)
    except JobNotFoundError as error:
        log.warning("job_missing", job_id=job_id)
        return str(error)
    except UnreadableJobError as error:
        return left_alone(error)
    structlog.contextvars.bind_contextvars(account=job.account)
    if job.finetune_id is not None:
        structlog.contextvars.bind_contextvars(finetune_id=job.finetune_id)
    return job


def left_alone(error: UnreadableJobError) -> str:
    """Log, and say in a sentence, that this worker is too old for a job; its deadline brings it to a newer one."""
    log.warning("job_left_alone", job_id=error.job_id, detail=str(error))
    return f"nothing to do: {error}"


def _act(container: Container, function: StageFunction, claim: Claim) -> Outcome:
    job = claim.job
    if job.cancel_requested:
        return _cancelled(job)
    if job.request.expired(datetime.now(UTC)):
        return Fail(_deadline_error(job))
    try:
        return guarded(container, str(job.stage), function, claim)
    except CancelRequestedError:
        return _cancelled(claim.job)


def guarded(
    container: Container, doing: str, function: Callable[[Container, Claim], Result], claim: Claim
) -> Result | Wait | Retry | Fail:
    """Run ``function`` on a claimed job, and turn what it raises into an outcome.

    Raises:
        CancelRequestedError: the caller wants the job cancelled.
        ConflictError: the claim was lost.
        RedisError: the store is out of reach.
    """
    try:
        return function(container, claim)
    except UnknownAccountKeyError as error:
        return _without_key(container, claim.job, doing, error)
    except UnknownAccountError as error:
        return Fail(_account_unknown(doing, error))
    except NoShareError as error:
        return error.wait
    except WorkFolderError as error:
        return after_transfer(error, doing)
    except WorkerStoppingError:
        return Wait("parked: this worker is stopping; another takes over", WaitReason.BACKOFF, 0.0)
    except StaleCallError:
        return Wait("parked: this worker stalled before its call, so it did not send it", WaitReason.BACKOFF, 1.0)
    except (CancelRequestedError, ConflictError, RedisError):
        raise
    except Exception as error:
        log.exception("stage_crashed")
        return Retry(
            JobError(
                code="internal_error",
                stage=doing,
                message=f"The stage met an unexpected {type(error).__name__}.",
                action=f"See the worker's log for stage_crashed with this job_id; then {again(doing)}.",
                retryable=True,
            )
        )


def _without_key(container: Container, job: JobRecord, doing: str, error: UnknownAccountKeyError) -> Wait | Fail:
    """Leave the job to a worker that has its account's key: a new key reaches the workers one by one."""
    # Also to one that may only come back: after an outage of Redis every worker's last sign of life is old.
    if not any(job.account in worker.accounts for worker in container.workers.not_forgotten()):
        return Fail(_account_unknown(doing, error))
    log.warning("account_of_others", detail=str(error))
    return Wait(f"parked: {error} A worker that has it takes over", WaitReason.BACKOFF, OTHERS_TURN)


def _account_unknown(doing: str, error: Exception) -> JobError:
    return JobError(
        code="account_unknown",
        stage=doing,
        message=str(error),
        action="Correct the request's account, or add the account to the workers' SEGMIND_ACCOUNTS.",
    )


def _cancelled(job: JobRecord) -> Done:
    """End the job, and say what the cancel could stop."""
    if job.finetune_id is not None:
        said = f"cancelled here; training {job.finetune_id} continues at Segmind, which has no cancel"
    elif job.tracked:
        said = "cancelled: a submit was on its way, so Segmind may have started, and charged for, a training"
    else:
        said = "cancelled: nothing had been submitted"
    return Done(said, to=JobState.CANCELLED)


def _deadline_error(job: JobRecord) -> JobError:
    if job.finetune_id is not None:
        action = f"Training {job.finetune_id} continues at Segmind; `finetune retry` fetches it."
    elif job.tracked:
        action = "Its submit may have been charged: `finetune retry` looks for the training and fetches it."
    else:
        action = "Submit again with a later deadline."
    return JobError(
        code="deadline_passed",
        stage=str(job.stage),
        message=f"The request's deadline {job.request.deadline} passed while the job was {job.state}.",
        action=action,
    )
