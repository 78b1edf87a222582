"""What was seen of a run, as plain data: what the checker judges, and all that it knows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Event = Mapping[str, Any]
"""A CloudEvent as JSON."""


@dataclass(frozen=True, slots=True)
class Promise:
    """A job that a caller was told it has."""

    job_id: str
    name: str
    left_alone: bool = False
    """It may stay failed: nobody retried it in the end, or nobody could."""


@dataclass(frozen=True, slots=True)
class SeenJob:
    """A job as it is in the end, with its own list of events."""

    job_id: str
    name: str
    state: str
    finetune_id: str | None
    sha256: str | None
    error: str
    events: Sequence[Event]
    public: bool | None = None
    """Whether Segmind has confirmed that its model is public; None if nobody asked for a change."""


@dataclass(frozen=True, slots=True)
class SeenTraining:
    """A training as Segmind has it; each was paid. ``sha256`` is that of its weights."""

    finetune_id: str
    name: str
    dataset: str
    status: str
    sha256: str
    public: bool = False


@dataclass(frozen=True, slots=True)
class SeenSink:
    """What a sink got, in order, and which of the jobs' events it should have."""

    name: str
    got: Sequence[Event]
    jobs: frozenset[str]
    kinds: frozenset[str]
    forged: int = 0


@dataclass(frozen=True, slots=True)
class SeenAccount:
    """What Segmind saw of an account: the most calls in any window, and how many it may have."""

    name: str
    limit: int
    most_in_window: int
    refused: int
    calls: int


@dataclass(frozen=True, slots=True)
class History:
    """Everything."""

    seed: int
    seconds: float
    promises: Sequence[Promise]
    jobs: Mapping[str, SeenJob]
    trainings: Sequence[SeenTraining]
    stream: Sequence[Event]
    sinks: Sequence[SeenSink]
    accounts: Sequence[SeenAccount]
    files: Mapping[str, Mapping[str, str]]
    """For each folder of the artifacts its files' names and hashes."""
    manifests: Mapping[str, Mapping[str, Any]]
    poisoned: Sequence[str] = ()
    dead_letters: frozenset[str] = frozenset()
    """Ids of the messages that were set aside."""
    asked_to_cancel: frozenset[str] = frozenset()
    asked_to_retry: Mapping[str, int] = field(default_factory=dict)
    left_over: Mapping[str, int] = field(default_factory=dict)
    """What still waits in Redis, by where."""
    leaks: Sequence[str] = ()
    answers: Sequence[str] = ()
    """What callers were told, or a hook was answered, that was wrong."""
    ended: Sequence[str] = ()
    """Processes that ended by themselves."""
    crashes: Sequence[str] = ()
    """What the service itself logged as unexpected."""
    fired: Mapping[str, int] = field(default_factory=dict)
    expected_kinds: Sequence[str] = ()
    sent_again: Sequence[str] = ()
    """Jobs whose raw message was lost between the broker and a worker, and which their caller sent again."""
    resolved: int = 0
