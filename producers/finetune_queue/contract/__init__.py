"""What producers, workers and consumers agree on: the request, the job, its states and its events."""

from finetune_queue.contract.event import Event
from finetune_queue.contract.ids import derived_job_id, new_job_id
from finetune_queue.contract.job import TRANSITIONS, JobError, JobRecord, JobState, Stage, WaitReason
from finetune_queue.contract.kinds import EventType
from finetune_queue.contract.request import FineTuneRequest, RequestError, parse_request
from finetune_queue.contract.sink import Sink, SinkKind, parse_sink, parse_sinks

__all__ = [
    "TRANSITIONS",
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
    "WaitReason",
    "derived_job_id",
    "new_job_id",
    "parse_request",
    "parse_sink",
    "parse_sinks",
]
