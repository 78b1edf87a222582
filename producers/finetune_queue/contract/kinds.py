"""The kinds of events."""

from enum import StrEnum


class EventType(StrEnum):
    """The last word of an event's type: a state that a job entered, or something that happened within one."""

    ACCEPTED = "accepted"
    UPLOADING = "uploading"
    SUBMITTING = "submitting"
    TRAINING = "training"
    DOWNLOADING = "downloading"
    DEPLOYING = "deploying"
    NEEDS_ATTENTION = "needs_attention"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    PROGRESS = "progress"  # Segmind's own status changed
    ACCESS = "access"  # a change of the model's access at Segmind was asked for, made or refused
    REJECTED = "rejected"  # a message that could not become a job
