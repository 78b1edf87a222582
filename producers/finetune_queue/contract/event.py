"""Events: what happened to a job, as CloudEvents 1.0 in structured JSON (https://github.com/cloudevents/spec)."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from finetune_queue.contract.job import JobRecord, JobState
from finetune_queue.contract.kinds import EventType
from finetune_queue.contract.views import EVENT_DATA

SOURCE = "/finetune-queue"
SCHEMA = "urn:finetune-queue:v1:event"
"""The id of the schema of all events, docs/contract/event.schema.json."""

_PREFIX = "io.finetunequeue.job."
_VERSION = ".v1"
_KINDS = frozenset(EventType)


class Event(BaseModel):
    """One CloudEvent. ``id`` is stable: a redelivered event carries the same one, so consumers can drop repeats.
    ``time`` is by the clock of the machine that made the event, unlike all other times, which are the Redis server's:
    the JSON is made before the server has the change. Order events by ``sequence``.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    specversion: Literal["1.0"] = "1.0"
    id: str
    source: str = SOURCE
    type: str
    subject: str
    time: AwareDatetime
    datacontenttype: Literal["application/json"] = "application/json"
    dataschema: Annotated[
        str | SkipJsonSchema[None],
        Field(
            description="The schema of the data; older events do not name it.", exclude_if=lambda value: value is None
        ),
    ] = None
    sequence: str
    # The CloudEvents extension for distributed tracing.
    traceparent: Annotated[
        str | SkipJsonSchema[None],
        Field(description="The job's trace, if it is traced.", exclude_if=lambda value: value is None),
    ] = None
    data: dict[str, Any]

    @property
    def kind(self) -> EventType | str:
        """The last word of the type; a plain word if a newer version wrote it and this one does not know the kind."""
        word = self.type.removeprefix(_PREFIX).removesuffix(_VERSION)
        return EventType(word) if word in _KINDS else word


def type_name(kind: EventType) -> str:
    """Return the full CloudEvents type of a kind of event."""
    return f"{_PREFIX}{kind}{_VERSION}"


def data_schema(kind: EventType) -> str:
    """Return the URI of the schema of a kind's data: its place in that of all events."""
    return f"{SCHEMA}#/$defs/{EVENT_DATA[kind].__name__}"


def job_event(job: JobRecord, kind: EventType, previous: JobState | None) -> Event:
    """Make the event that tells of ``job`` as it is after the change; its number is the job's ``event_seq``."""
    data: dict[str, Any] = {
        "job_id": job.id,
        "state": str(job.state),
        "previous_state": str(previous) if previous else None,
        "account": job.account,
        "name": job.request.name,
        "labels": job.request.labels,
        "finetune_id": job.finetune_id,
        "provider_status": job.provider_status,
    }
    if job.error is not None:
        data["error"] = job.error.model_dump(mode="json")
    if job.weights is not None:
        data["weights"] = job.weights.model_dump(mode="json")
    if job.slug is not None:
        data["slug"] = job.slug
    if kind is EventType.SUBMITTING or (job.state is JobState.FAILED and job.finetune_id is None):
        data["dataset_report"] = job.dataset_report
    if kind is EventType.NEEDS_ATTENTION:
        data["evidence"] = job.evidence
    if kind is EventType.ACCESS and job.access is not None:
        data["access"] = job.access.model_dump(mode="json", exclude_none=True)
    return Event(
        id=f"{job.id}-{job.event_seq}",
        type=type_name(kind),
        subject=job.id,
        time=datetime.now(UTC),
        dataschema=data_schema(kind),
        # Sorts as text, as the CloudEvents sequence extension asks.
        sequence=f"{job.event_seq:010d}",
        traceparent=job.traceparent,
        data=data,
    )


def rejected_event(message_id: str, reason: str, problems: list[str]) -> Event:
    """Make the event for a message that could not become a job."""
    return Event(
        id=f"{message_id}-rejected",
        type=type_name(EventType.REJECTED),
        subject=message_id,
        time=datetime.now(UTC),
        dataschema=data_schema(EventType.REJECTED),
        sequence=f"{1:010d}",
        data={"message_id": message_id, "reason": reason, "problems": problems},
    )
