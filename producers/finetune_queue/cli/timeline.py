"""A job as a list of steps: those behind it from its events, the one it is in, and those to come."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any, Literal

from finetune_queue.cli import words
from finetune_queue.contract import Event, EventType, JobRecord, JobState
from finetune_queue.plain_words import byte_size
from finetune_queue.sdk import Waiting

Mark = Literal["done", "now", "attention", "bad", "todo"]

_STATES = frozenset(JobState)


@dataclass(frozen=True, slots=True)
class Step:
    """One line: a state, how the job stands to it, for how many seconds, and what there is to say."""

    state: JobState
    mark: Mark
    seconds: float | None = None
    detail: str = ""


def steps(
    record: JobRecord, events: Sequence[Event], waiting: Waiting | None, now: datetime, *, stranded: bool = False
) -> list[Step]:
    """Return the job's steps in order. A state that a retry entered again is there twice, as it happened."""
    entered = [event for event in events if event.kind in _STATES]
    found: list[Step] = []
    for event, following in pairwise(entered):
        seconds = (following.time - event.time).total_seconds()
        mark: Mark = "bad" if event.kind is EventType.FAILED else "done"
        # A failed stage is shown by its end; the step itself was not done.
        if following.kind in {EventType.FAILED, EventType.CANCELLED}:
            mark = "bad"
        found.append(Step(JobState(event.kind), mark, max(0.0, seconds), _behind(event, following, record)))
    if entered:
        found.append(_last(entered, now, detail(record, waiting, stranded=stranded)))
    return found + [Step(state, "todo") for state in _to_come(record)]


def detail(record: JobRecord, waiting: Waiting | None, *, stranded: bool = False) -> str:
    """Say in one line what a job is doing, or how it ended; ``stranded``: no worker is there."""
    if record.state is JobState.SUCCEEDED:
        return words.near(record.weights.url) if record.weights else ""
    if record.state is JobState.CANCELLED and record.finetune_id is not None:
        return "stopped here; Segmind's training continues, as it has no cancel"
    if record.state.terminal:
        return words.printable(record.error.message) if record.error else ""
    if record.state is JobState.NEEDS_ATTENTION:
        return "a person must say whether the submit reached Segmind (finetune resolve)"
    parts = list(_live_parts(record, waiting))
    if record.cancel_requested:
        parts.insert(0, "a cancel was requested")
    if stranded:
        parts.append(words.NO_WORKER)
    return "; ".join(parts)


def event_line(event: Event) -> str:
    """Say in one line what an event tells, beside its kind."""
    data = event.data
    error = data.get("error")
    match event.kind:
        case EventType.SUBMITTING if data.get("dataset_report"):
            return f"dataset: {words.report_line(data['dataset_report'])}"
        case EventType.SUCCEEDED if isinstance(data.get("weights"), dict):
            return words.near(str(data["weights"].get("url", "")))
        case EventType.FAILED if isinstance(error, dict):
            return words.printable(error.get("message", ""))
        case EventType.ACCESS if isinstance(data.get("access"), dict):
            return _access_line(data["access"])
        case EventType.TRAINING | EventType.PROGRESS if data.get("provider_status"):
            return f"Segmind: {words.printable(data['provider_status'])}"
        case _:
            return ""


def _access_line(access: dict[str, Any]) -> str:
    if access.get("wanted"):
        return f"to be made {words.printable(access['wanted'])}"
    if access.get("error"):
        return f"not changed: {words.printable(access['error'].get('message', ''))}"
    return f"the model is {words.printable(access.get('confirmed'))}"


def _live_parts(record: JobRecord, waiting: Waiting | None) -> Iterator[str]:
    status = words.printable(record.provider_status) if record.provider_status else None
    for_segmind = waiting is not None and waiting.reason == "provider" and not waiting.unserved
    said = waiting is not None and waiting.reason == "worker" and waiting.no_worker  # once, of all
    if status and record.state in {JobState.TRAINING, JobState.DEPLOYING}:
        yield f"Segmind: {status}"
        said = said or for_segmind
    elif for_segmind and record.state is JobState.SUBMITTING:
        yield "the submit had no clear answer: Segmind is searched for its training before it may be sent again"
        said = True
    if waiting is not None and (waiting.pause_reason or not said):
        yield words.waiting_line(waiting, record.error)


def _behind(event: Event, following: Event, record: JobRecord) -> str:
    """Say what came of a state that the job has left."""
    match event.kind, following.kind:
        case EventType.FAILED, _:
            return _error_of(event)
        case _, EventType.FAILED | EventType.CANCELLED:
            return ""
        case EventType.ACCEPTED, _:
            return "on the queue"
        case EventType.UPLOADING, _:
            report = following.data.get("dataset_report")
            return words.report_line(report) if report else ""
        case EventType.SUBMITTING, EventType.TRAINING:
            return f"training {words.printable(following.data.get('finetune_id'))}"
        case EventType.TRAINING, _:
            return f"Segmind: {words.printable(following.data.get('provider_status') or 'done')}"
        case EventType.DOWNLOADING, _ if record.weights is not None:
            return f"{byte_size(record.weights.bytes)}, {record.weights.tensors} tensors, verified and stored"
        case EventType.DEPLOYING, _:
            return "ready for inference at Segmind"
        case _:
            return ""


def _last(entered: Sequence[Event], now: datetime, doing: str) -> Step:
    event = entered[-1]
    state = JobState(event.kind)
    whole = (event.time - entered[0].time).total_seconds()
    match state:
        case JobState.SUCCEEDED:
            return Step(state, "done", max(0.0, whole), "in all")
        case JobState.FAILED | JobState.CANCELLED:
            text = _error_of(event) if state is JobState.FAILED else doing
            return Step(state, "bad", max(0.0, whole), text)
        case _:
            mark: Mark = "attention" if state is JobState.NEEDS_ATTENTION else "now"
            return Step(state, mark, max(0.0, (now - event.time).total_seconds()), doing)


def _error_of(event: Event) -> str:
    error = event.data.get("error") or {}
    return words.printable(error.get("message", "")) if isinstance(error, dict) else ""


def _to_come(record: JobRecord) -> list[JobState]:
    if record.state.terminal:
        return []
    path = [JobState.ACCEPTED, JobState.UPLOADING, JobState.SUBMITTING, JobState.TRAINING, JobState.DOWNLOADING]
    if record.request.wait_for == "available":
        path.append(JobState.DEPLOYING)
    path.append(JobState.SUCCEEDED)
    here = JobState.SUBMITTING if record.state is JobState.NEEDS_ATTENTION else record.state
    return path[path.index(here) + 1 :] if here in path else [JobState.SUCCEEDED]
