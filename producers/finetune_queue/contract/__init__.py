"""What producers, workers and consumers agree on: the request, the job, its states and its events."""

from finetune_queue.contract.event import Event
from finetune_queue.contract.ids import derived_job_id, new_job_id
from finetune_queue.contract.job import (
    ACCESS,
    FOUND,
    MOVED_ON,
    RELEASED,
    RETRY_IS_USELESS,
    TRANSITIONS,
    UNSENT,
    Access,
    JobError,
    JobRecord,
    JobState,
    Stage,
    Visibility,
    WaitReason,
)
from finetune_queue.contract.kinds import EventType
from finetune_queue.contract.request import (
    DEFAULT_ACCOUNT,
    USUAL_PRIORITY,
    FineTuneRequest,
    RequestError,
    parse_request,
)
from finetune_queue.contract.sink import Sink, SinkKind, parse_sink, parse_sinks

__all__ = [
    "ACCESS",
    "DEFAULT_ACCOUNT",
    "FOUND",
    "MOVED_ON",
    "RELEASED",
    "RETRY_IS_USELESS",
    "TRANSITIONS",
    "UNSENT",
    "USUAL_PRIORITY",
    "Access",
    "Event",
    "EventType",
    "FineTuneRequest",
    "JobError",
    "JobRecord",
    "JobState",
    "RequestError",
    "Sink",
    "SinkKind",
    "Stage",
    "Visibility",
    "WaitReason",
    "derived_job_id",
    "new_job_id",
    "parse_request",
    "parse_sink",
    "parse_sinks",
]
