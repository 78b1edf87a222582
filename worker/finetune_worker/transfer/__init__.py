"""Datasets up, weights down: streamed, checked while they move, and safe to cut at any byte."""

from finetune_worker.transfer.download import Download, discard, download
from finetune_worker.transfer.errors import (
    NeedNewUrl,
    NoRoom,
    PartBusy,
    Refused,
    SafetensorsError,
    SourceChanged,
    StartOver,
    TransferError,
    TryAgain,
)
from finetune_worker.transfer.limits import Limits
from finetune_worker.transfer.put import Uploaded, upload_presigned
from finetune_worker.transfer.safetensors import verify_safetensors

__all__ = [
    "Download",
    "Limits",
    "NeedNewUrl",
    "NoRoom",
    "PartBusy",
    "Refused",
    "SafetensorsError",
    "SourceChanged",
    "StartOver",
    "TransferError",
    "TryAgain",
    "Uploaded",
    "discard",
    "download",
    "upload_presigned",
    "verify_safetensors",
]
