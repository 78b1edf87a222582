"""Producers of finetune-queue: submit fine-tunes, follow them, read their events."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune_queue.contract import Event, FineTuneRequest, JobState
    from finetune_queue.errors import (
        FineTuneQueueError,
        IdempotencyConflictError,
        InvalidArgumentError,
        InvalidRequestError,
        NotPossibleError,
        QueueUnavailableError,
        StagingUnavailableError,
        TargetError,
        UnknownAccountNameError,
        UnknownJobError,
        UnknownStateError,
        UnreadableJobError,
        WaitTimeoutError,
        WeightsDamagedError,
        WeightsUnavailableError,
    )
    from finetune_queue.sdk import FineTuneQueue, Job, Submission, Waiting
    from finetune_queue.settings import Settings, SettingsError, load_settings

__version__ = "0.1.0"

_HOMES = {
    "Event": "contract",
    "FineTuneRequest": "contract",
    "JobState": "contract",
    "FineTuneQueueError": "errors",
    "IdempotencyConflictError": "errors",
    "InvalidArgumentError": "errors",
    "InvalidRequestError": "errors",
    "NotPossibleError": "errors",
    "QueueUnavailableError": "errors",
    "StagingUnavailableError": "errors",
    "TargetError": "errors",
    "UnknownAccountNameError": "errors",
    "UnknownJobError": "errors",
    "UnknownStateError": "errors",
    "UnreadableJobError": "errors",
    "WaitTimeoutError": "errors",
    "WeightsDamagedError": "errors",
    "WeightsUnavailableError": "errors",
    "FineTuneQueue": "sdk",
    "Job": "sdk",
    "Submission": "sdk",
    "Waiting": "sdk",
    "Settings": "settings",
    "SettingsError": "settings",
    "load_settings": "settings",
}

__all__ = [
    "Event",
    "FineTuneQueue",
    "FineTuneQueueError",
    "FineTuneRequest",
    "IdempotencyConflictError",
    "InvalidArgumentError",
    "InvalidRequestError",
    "Job",
    "JobState",
    "NotPossibleError",
    "QueueUnavailableError",
    "Settings",
    "SettingsError",
    "StagingUnavailableError",
    "Submission",
    "TargetError",
    "UnknownAccountNameError",
    "UnknownJobError",
    "UnknownStateError",
    "UnreadableJobError",
    "WaitTimeoutError",
    "Waiting",
    "WeightsDamagedError",
    "WeightsUnavailableError",
    "load_settings",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that a part of the package costs only itself (PEP 562)."""
    if name not in _HOMES:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
