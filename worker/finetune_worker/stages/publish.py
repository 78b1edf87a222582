"""Publish: the manifest beside the weights, then the job's end and its result event in one transition."""

import json
from typing import Any

from finetune_queue.contract import JobRecord, JobState, Stage
from finetune_queue.contract.job import iso_time
from finetune_queue.redaction import redact_text
from finetune_queue.storage import StorageError
from finetune_worker.container import Container
from finetune_worker.stages.claim import Claim
from finetune_worker.stages.outcome import Done, Outcome, after_storage


def publish(container: Container, claim: Claim) -> Outcome:
    """Write the manifest and end the job."""
    job = claim.job
    weights = job.weights
    if weights is None:
        message = f"job {job.id} reached publish without weights"
        raise ValueError(message)
    body = json.dumps(manifest(job), indent=2) + "\n"
    claim.hold(container.store_silence)
    try:
        container.artifacts.put_bytes(body.encode(), manifest_name(job.id))
        # Of workers that were killed, or were overtaken and may not replace what is there.
        container.artifacts.drop_parts(job.id)
    except StorageError as error:
        return after_storage(error, Stage.PUBLISH)
    return Done(f"succeeded: weights at {weights.url} (sha256 {weights.sha256[:12]}…)", to=JobState.SUCCEEDED)


def manifest_name(job_id: str) -> str:
    """Return where a job's manifest lies among the artifacts."""
    return f"{job_id}/manifest.json"


def manifest(job: JobRecord) -> dict[str, Any]:
    """Return what a person or a program needs to know of the weights beside it."""
    request = job.request.model_dump(mode="json", exclude={"idempotency_key", "reply_to"})
    return {
        "job_id": job.id,
        "request": {**request, "dataset": redact_text(job.request.dataset)},
        "finetune_id": job.finetune_id,
        "provider_status": job.provider_status,
        "slug": job.slug,
        "dataset": job.dataset_report,
        "weights": job.weights.model_dump(mode="json") if job.weights else None,
        "accepted_at": iso_time(job.created_ms),
        "submitted_at": iso_time(job.submitted_ms) if job.submitted_ms else None,
        "finished_at": iso_time(job.updated_ms),
    }
