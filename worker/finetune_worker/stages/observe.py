"""What follows for a job from what Segmind shows of its training. The sweep and the poll stage write it down."""

from dataclasses import dataclass, field
from typing import Any

import structlog

from finetune_queue.contract import JobError, JobRecord, JobState, Stage
from finetune_worker.segmind.models import FinetuneDetails, FinetuneItem, is_trained

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Observation:
    """The job's next state if it moves, the fields that changed, whether one details call is needed to go on, and
    whether the status is a new one that nobody has documented."""

    to: JobState | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    wants_details: bool = False
    unknown_status: bool = False

    @property
    def news(self) -> bool:
        """Whether there is anything to write down."""
        return self.to is not None or bool(self.fields) or self.wants_details


def observe(job: JobRecord, seen: FinetuneItem | FinetuneDetails) -> Observation:
    """Return what follows for a job from its training as Segmind shows it. Once a training is over, its weights are
    taken if their URL is known, also from one that seems to have failed: that a word like FAILED means the training is
    a guess, and it may mean the deployment."""
    fields: dict[str, Any] = {}
    unknown = False
    if seen.status and seen.status != job.provider_status:
        fields["provider_status"] = seen.status
        unknown = not seen.known and not seen.failed
        if unknown:
            log.warning("unknown_provider_status", job_id=job.id, status=seen.status)
    if job.state is JobState.DEPLOYING:
        if seen.undeployed:
            failed = {"error": _not_deployed(job, seen), "failed_stage": Stage.POLL}
            return Observation(to=JobState.FAILED, fields={**fields, **failed})
        if seen.available:
            fields |= {"deployed": True, **_model(seen)}
        return Observation(fields=fields, unknown_status=unknown)
    over = seen.trained or seen.failed
    if over and seen.cloud_storage_url:
        weights = {"weights_url": seen.cloud_storage_url, "wants_details": False, **_model(seen)}
        return Observation(to=JobState.DOWNLOADING, fields={**fields, **weights}, unknown_status=unknown)
    wants_details = over and not job.wants_details
    if seen.failed and (isinstance(seen, FinetuneItem) or is_trained(job.provider_status or "")):
        # The list may lack the URL of weights that exist, and a new training would be paid for. The job's status stays
        # what it was: the next look has to know that the training was over.
        return Observation(wants_details=wants_details)
    if seen.failed:
        error = JobError(
            code="training_failed",
            stage=Stage.POLL,
            message=_ended_as(job, seen),
            action="`finetune retry JOB` submits a new training, which is charged again.",
        )
        return Observation(to=JobState.FAILED, fields={**fields, "error": error, "failed_stage": Stage.SUBMIT})
    return Observation(fields=fields, wants_details=wants_details, unknown_status=unknown)


def _model(seen: FinetuneItem | FinetuneDetails) -> dict[str, Any]:
    """Return the model's name for inference, which only the details have: no call is made for it alone."""
    return {"slug": seen.slug} if isinstance(seen, FinetuneDetails) and seen.slug else {}


def _ended_as(job: JobRecord, seen: FinetuneItem | FinetuneDetails) -> str:
    said = f": {seen.error_message}" if seen.error_message else ""
    return f"Segmind's training {job.finetune_id} ended as {seen.status}{said}"


def _not_deployed(job: JobRecord, seen: FinetuneItem | FinetuneDetails) -> JobError:
    """The error if the deployment failed. The weights are stored by then, and a retry costs nothing: it looks at the
    same training again."""
    where = "" if job.weights is None else f" They are at {job.weights.url}."
    return JobError(
        code="deploy_failed",
        stage=Stage.POLL,
        message=f"{_ended_as(job, seen)}. Its weights are stored, but Segmind did not deploy them.{where}",
        action="Use the stored weights. `finetune retry JOB` looks at the same training again at no cost; only a "
        "new request submits, and pays for, a new one.",
    )
