"""What callers and consumers see, as models: a job, and the data of each kind of event.

The published schemas (docs/contract) are made from these. They only grow within v1: see docs/contract/README.md.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue

from finetune_queue.contract.job import Access, JobError, JobState, Progress, Stage, WaitReason, Weights
from finetune_queue.contract.kinds import EventType

_SLUG = "Segmind's name of the model for inference; left out where no call that the job needed told it."


class PublicJob(BaseModel):
    """A job as callers see it. What is not known yet, or does not apply, is left out."""

    model_config = ConfigDict(frozen=True, extra="allow")

    job_id: str
    state: JobState
    account: str
    request: dict[str, Any] = Field(
        description="The request as it was accepted, with every default filled in; sinks and signed links without "
        "their secrets."
    )
    created_at: AwareDatetime
    updated_at: AwareDatetime
    attempts: int = Field(description="How often the running stage has failed, outages left out.")
    cancel_requested: bool
    waiting_for: WaitReason | None = Field(default=None, description="Why the job is not moving.")
    progress: Progress | None = Field(default=None, description="How far the running stage is.")
    error: JobError | None = Field(default=None, description="Why the job, or its latest try, did not succeed.")
    failed_stage: Stage | None = Field(default=None, description="Where a retry resumes.")
    dataset_report: dict[str, JsonValue] | None = Field(
        default=None, description="What the check of the dataset found."
    )
    dataset_url: str | None = Field(default=None, description="Where Segmind reads the dataset.")
    evidence: list[str] = Field(description="What speaks for and against a submit that may have happened.")
    finetune_id: str | None = Field(default=None, description="Segmind's id of the training.")
    provider_status: str | None = Field(default=None, description="Segmind's own word for where the training is.")
    weights_url: str | None = Field(default=None, description="Where Segmind keeps the weights.")
    slug: str | None = Field(default=None, description=_SLUG)
    weights: Weights | None = Field(default=None, description="The result in this service's own store.")
    access: Access | None = Field(default=None, description="What was asked for with set_public, if anything.")
    traceparent: str | None = Field(default=None, description="The job's trace (W3C Trace Context), if it is traced.")


class JobEventData(BaseModel):
    """The data of an event that tells of a job, as it is after the change."""

    model_config = ConfigDict(frozen=True, extra="allow")

    job_id: str
    state: JobState
    previous_state: JobState | None = Field(description="The state before the change; null for a new job.")
    account: str = Field(description="The Segmind account that pays.")
    name: str = Field(description="The request's name.")
    labels: dict[str, str] = Field(description="The request's labels, as they came.")
    finetune_id: str | None = Field(description="Segmind's id of the training, once there is one.")
    provider_status: str | None = Field(description="Segmind's own word for where the training is.")
    error: JobError | None = Field(default=None, description="Why the job, or its latest try, did not succeed.")
    weights: Weights | None = Field(default=None, description="The stored result, once there is one.")
    slug: str | None = Field(default=None, description=_SLUG)


class SubmittingData(JobEventData):
    """The dataset is in place."""

    dataset_report: dict[str, JsonValue] | None = Field(
        description="What the check found; null for a public dataset that Segmind reads itself."
    )


class NeedsAttentionData(JobEventData):
    """A person must say whether a submit happened."""

    evidence: list[str]


class SucceededData(JobEventData):
    """The weights are verified and stored."""

    weights: Weights


class FailedData(JobEventData):
    """The job ended without a result."""

    error: JobError
    dataset_report: dict[str, JsonValue] | None = Field(
        default=None, description="Before a submit: what the check found."
    )


class AccessData(JobEventData):
    """A change of who may use the model was asked for, made or refused."""

    access: Access


class RejectedData(BaseModel):
    """A message that could not become a job; its body is a dead letter."""

    model_config = ConfigDict(frozen=True, extra="allow")

    message_id: str
    reason: str
    problems: list[str] = Field(description="One sentence for each thing that is wrong.")


EVENT_DATA: Mapping[EventType, type[BaseModel]] = {
    **dict.fromkeys(EventType, JobEventData),
    EventType.SUBMITTING: SubmittingData,
    EventType.NEEDS_ATTENTION: NeedsAttentionData,
    EventType.SUCCEEDED: SucceededData,
    EventType.FAILED: FailedData,
    EventType.ACCESS: AccessData,
    EventType.REJECTED: RejectedData,
}
"""What ``data`` of each kind of event holds."""
