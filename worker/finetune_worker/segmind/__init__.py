"""The client of Segmind's fine-tuning API: typed calls, each bounded in time, with errors classified once."""

from finetune_worker.segmind.client import SegmindClient
from finetune_worker.segmind.errors import (
    MalformedReply,
    NotSent,
    OutcomeUnknown,
    RateLimited,
    Rejected,
    SegmindError,
    Unavailable,
)
from finetune_worker.segmind.listing import FinetuneListing
from finetune_worker.segmind.models import (
    Credits,
    FinetuneDetails,
    FinetuneItem,
    PresignedUpload,
    SubmitReply,
    SubmitRequest,
)

__all__ = [
    "Credits",
    "FinetuneDetails",
    "FinetuneItem",
    "FinetuneListing",
    "MalformedReply",
    "NotSent",
    "OutcomeUnknown",
    "PresignedUpload",
    "RateLimited",
    "Rejected",
    "SegmindClient",
    "SegmindError",
    "SubmitReply",
    "SubmitRequest",
    "Unavailable",
]
