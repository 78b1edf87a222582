"""How a job goes on after a person's decision: its next state, and the fields that must be reset for it."""

from typing import Any

from finetune_queue.contract import FOUND, MOVED_ON, UNSENT, Access, JobRecord, JobState, Stage, Visibility, WaitReason
from finetune_queue.errors import NotPossibleError

_FRESH: dict[str, Any] = {**MOVED_ON, "failed_stage": None, "cancel_requested": False}


def resume_at(record: JobRecord) -> tuple[JobState, dict[str, Any]]:
    """Return the state of a failed job in which its failed stage acts again, and the changes to its fields."""
    match record.failed_stage:
        case Stage.UPLOAD:
            return JobState.UPLOADING, _FRESH
        case Stage.SUBMIT if record.intent_ms is not None and record.finetune_id is None:
            # Nobody knows whether it was submitted: the intent is kept, so sweeps search for a training first.
            return JobState.SUBMITTING, {**_FRESH, "looks": 0, "waiting_for": WaitReason.PROVIDER}
        case Stage.SUBMIT:
            training = dict.fromkeys(("finetune_id", "submitted_ms", "provider_status", "weights_url", "slug"))
            # The failed training looks like the job's for ever, so the search must skip it.
            failed = [*record.ruled_out, record.finetune_id] if record.finetune_id is not None else record.ruled_out
            # A training that a person named is still looked at first: a retry must not pay for another one.
            submit = {**UNSENT, "adopting": record.adopting, "evidence": [], "ruled_out": failed}
            return JobState.SUBMITTING, {**_FRESH, **training, **submit, **_access_anew(record)}
        case Stage.POLL if record.weights is not None:
            return JobState.DEPLOYING, _FRESH
        case Stage.POLL:
            return JobState.TRAINING, {**_FRESH, "wants_details": True}
        case _:
            return JobState.DOWNLOADING, _FRESH


def to_adopt(record: JobRecord, finetune_id: str) -> tuple[JobState, dict[str, Any]]:
    """Return the state and the changes that have a worker look at the training, and adopt it if it can be the job's."""
    evidence = record.with_evidence(f"training {finetune_id} was named by hand")
    return JobState.SUBMITTING, {**_FRESH, **FOUND, "adopting": finetune_id, "evidence": evidence}


def resubmitted(record: JobRecord) -> tuple[JobState, dict[str, Any]]:
    """Return the state and the changes that let the job be submitted as if it had not been."""
    evidence = record.with_evidence("it was submitted again by hand")
    return JobState.SUBMITTING, {**_FRESH, **UNSENT, "evidence": evidence}


def _access_anew(record: JobRecord) -> dict[str, Any]:
    """Return the changes to ``access`` when the job gets another model: a change that is still wanted stays, what was
    confirmed for the old model does not."""
    wanted = None if record.access is None else record.access.wanted
    return {"access": None if wanted is None else Access(wanted=wanted), "access_settles_ms": None}


def with_access(record: JobRecord, wanted: Visibility) -> dict[str, Any]:
    """Return the fields of an ended job whose model is to be made public or private.

    Raises:
        NotPossibleError: it has no model yet, or another change of its access is under way.
    """
    if record.finetune_id is None:
        message = f"Job {record.id} has no training at Segmind, so there is no model to make {wanted}."
        raise NotPossibleError(message)
    if not record.state.terminal:
        message = f"Job {record.id} {record.state.sentence}. Its model can be made {wanted} once the job has ended."
        raise NotPossibleError(message)
    if record.owner:
        message = f"A change of job {record.id}'s access is on its way to Segmind. Ask again in a moment."
        raise NotPossibleError(message)
    confirmed = None if record.access is None else record.access.confirmed
    # A cancel that was asked for before the job ended must not stop this.
    fresh = {"takeovers": 0, "waiting_for": None, "cancel_requested": False}
    return {**fresh, "access": Access(wanted=wanted, confirmed=confirmed)}
