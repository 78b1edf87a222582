"""How a job goes on after a person's word: its next state, and the fields that the stages must find fresh."""

from typing import Any

from finetune_queue.contract import JobRecord, JobState, Stage, WaitReason

_FRESH: dict[str, Any] = {
    "error": None,
    "failed_stage": None,
    "attempts": 0,
    "takeovers": 0,
    "waiting_for": None,
    "cancel_requested": False,
}


def resume_at(record: JobRecord) -> tuple[JobState, dict[str, Any]]:
    """Return the state in which the failed stage acts again, and the fields that it must find fresh."""
    match record.failed_stage:
        case Stage.UPLOAD:
            return JobState.UPLOADING, _FRESH
        case Stage.SUBMIT if record.intent_ms is not None and record.finetune_id is None:
            # Whether it was submitted is not known: the intent stays, so the sweeps look for it before it may be sent.
            return JobState.SUBMITTING, {**_FRESH, "looks": 0, "waiting_for": WaitReason.PROVIDER}
        case Stage.SUBMIT:
            training = {"finetune_id": None, "intent_ms": None, "submitted_ms": None, "provider_status": None}
            # The failed training bears the job's mark for ever, and is not the one to find.
            failed = [*record.ruled_out, record.finetune_id] if record.finetune_id is not None else record.ruled_out
            looks = {"looks": 0, "evidence": [], "candidates": [], "ruled_out": failed}
            return JobState.SUBMITTING, {**_FRESH, **training, **looks, "weights_url": None}
        case Stage.POLL if record.weights is not None:
            return JobState.DEPLOYING, _FRESH
        case Stage.POLL:
            return JobState.TRAINING, {**_FRESH, "submitted_ms": record.updated_ms, "wants_details": True}
        case _:
            return JobState.DOWNLOADING, _FRESH


def adopted(record: JobRecord, finetune_id: str) -> tuple[JobState, dict[str, Any]]:
    """Let the job have this training; its details are asked for at once, so a wrong id is noticed."""
    training: dict[str, Any] = {
        "finetune_id": finetune_id,
        "submitted_ms": record.intent_ms,
        "wants_details": True,
        "candidates": [],
    }
    evidence = record.with_evidence(f"training {finetune_id} was adopted by hand")
    return JobState.TRAINING, {**_FRESH, **training, "evidence": evidence}


def resubmitted(record: JobRecord) -> tuple[JobState, dict[str, Any]]:
    """Let the job be submitted as if it had not been."""
    evidence = record.with_evidence("it was submitted again by hand")
    return JobState.SUBMITTING, {**_FRESH, "intent_ms": None, "looks": 0, "candidates": [], "evidence": evidence}
