"""Writes down how a stage of a job ended: one change of the job for each kind of outcome."""

from dataclasses import dataclass
from typing import Any

from finetune_queue.contract import MOVED_ON, RELEASED, JobRecord, JobState, Stage, WaitReason
from finetune_queue.store import Change
from finetune_worker.backoff import try_again_in
from finetune_worker.container import Container
from finetune_worker.stages.claim import until_deadline
from finetune_worker.stages.outcome import Attention, Done, Fail, Outcome, Retry, Wait
from finetune_worker.stages.poll import look_again_in


@dataclass(frozen=True, slots=True)
class StageResult:
    """What the Celery task answers: a sentence, and whether the chain goes on."""

    sentence: str
    proceed: bool


def conclude(container: Container, job: JobRecord, stage: Stage, outcome: Outcome) -> tuple[JobRecord, StageResult]:
    """Write the outcome of ``stage`` down; returns the job as it is then, and what the task answers.

    Raises:
        ConflictError: the claim was lost; nothing was written.
        OwnedElsewhereError: the training that the job found is another's; nothing was written.
    """
    match outcome:
        case Done():
            return _done(container, job, stage, outcome)
        case Wait():
            return _ended(_wait(container, job, outcome), outcome.sentence)
        case Retry() if outcome.outage or job.attempts + 1 < container.settings.finetune_max_attempts:
            return _retry(container, job, outcome)
        case Retry() | Fail():
            return _ended(_fail(container, job, stage, outcome), f"failed: {outcome.error.message}")
        case Attention():
            return _ended(leave_to_a_person(container, job, outcome.evidence), outcome.sentence)


def _ended(job: JobRecord, sentence: str) -> tuple[JobRecord, StageResult]:
    return job, StageResult(sentence, proceed=False)


def _done(container: Container, job: JobRecord, stage: Stage, outcome: Done) -> tuple[JobRecord, StageResult]:
    fields = {**MOVED_ON, **outcome.fields}
    # The job as it will be: how long it may wait depends on the stage that it comes to.
    then = job.model_copy(update={**fields, "state": outcome.to or job.state})
    if outcome.to is not None:
        then = then.model_copy(update={"entered_ms": job.updated_ms})
    delay: float | None = container.settings.finetune_handover
    if then.state.terminal:
        delay = None
    elif then.stage is Stage.POLL:
        # A sweep will see it, or its deadline comes: no message need bring it to where it waits.
        fields["waiting_for"] = WaitReason.PROVIDER
        delay = look_again_in(container, then, job.updated_ms)
    job = container.jobs.transition(job, Change(delay=delay, own=outcome.own), to=outcome.to, **fields)
    if job.state.terminal or job.stage is Stage.POLL:
        return _ended(job, outcome.sentence)
    if job.stage not in {stage, stage.next_in_chain}:
        # A deployed model comes from `poll` to `publish`, as its weights are stored: the chain's next link is
        # `download`, which would find nothing to do.
        container.messenger.start_many([job])
        return _ended(job, outcome.sentence)
    return job, StageResult(outcome.sentence, proceed=True)


def _wait(container: Container, job: JobRecord, outcome: Wait) -> JobRecord:
    fields = {**RELEASED, "waiting_for": outcome.reason, **outcome.fields}
    return container.jobs.transition(job, parked(job, outcome), **fields)


def parked(job: JobRecord, wait: Wait) -> Change:
    """Return the change by which a job waits, in a room if ``wait`` names a place there."""
    delay = until_deadline(job, wait.delay)
    return Change(delay=delay, room_score=wait.room_score, for_transfer=wait.for_transfer)


def _retry(container: Container, job: JobRecord, outcome: Retry) -> tuple[JobRecord, StageResult]:
    settings = container.settings
    if outcome.outage:
        failures, most = job.outages + 1, ""
        counted = {"outages": failures}
    else:
        failures, most = job.attempts + 1, f" of {settings.finetune_max_attempts}"
        counted = {"attempts": failures, "outages": 0}
    delay = outcome.after if outcome.after is not None else try_again_in(settings, failures, outcome.asked)
    fields = {**RELEASED, "waiting_for": WaitReason.BACKOFF, "error": outcome.error, **outcome.fields, **counted}
    job = container.jobs.transition(job, Change(delay=until_deadline(job, delay)), **fields)
    return _ended(job, f"try {failures}{most} failed: {outcome.error.message} Retrying in {delay:.0f} s")


def _fail(container: Container, job: JobRecord, stage: Stage, outcome: Retry | Fail) -> JobRecord:
    fields = {**RELEASED, "failed_stage": stage, "error": outcome.error, **outcome.fields}
    return container.jobs.transition(job, Change(), to=JobState.FAILED, **fields)


def leave_to_a_person(container: Container, job: JobRecord, evidence: str, **fields: Any) -> JobRecord:
    """Leave it to a person to say whether the job has a training; ``evidence`` is one more sentence of what is known,
    for that person."""
    change = Change(delay=container.settings.finetune_training_limit)
    fields = {**RELEASED, "adopting": None, "evidence": job.with_evidence(evidence), **fields}
    return container.jobs.transition(job, change, to=JobState.NEEDS_ATTENTION, **fields)
