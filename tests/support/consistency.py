"""What must hold between the jobs in a store and everything else that is kept of them there."""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from finetune_queue.contract import TRANSITIONS, Event, EventType, JobRecord, JobState
from finetune_queue.contract.event import type_name
from finetune_queue.store import keys, transfers_of
from segmind_sandbox.weights import Weights

_ENDS = {EventType.SUCCEEDED, EventType.FAILED, EventType.CANCELLED}

STATES = {type_name(EventType(state)): state for state in JobState}
"""The state that a job enters, by the type of the event that tells of it."""


def check_sets(client: Any, jobs: list[JobRecord]) -> None:
    """Every set in Redis agrees with the jobs."""
    live = {job.id for job in jobs if not job.state.terminal}
    unsettled = {job.id for job in jobs if not job.settled}
    assert set(client.zrange(keys.deadlines(), 0, -1)) == unsettled
    for state in JobState:
        assert set(client.zrange(keys.state(state), 0, -1)) == {job.id for job in jobs if job.state is state}
    rooms = [client.zrange(keys.room(name), 0, -1) for name in ("default", transfers_of("default"))]
    assert set(rooms[0]) <= unsettled
    assert rooms[1] == []
    tracked = set(client.zrange(keys.tracked("default"), 0, -1))
    assert {job.id for job in jobs if job.tracked} <= tracked <= live
    owners = client.hgetall(keys.owners())
    for job in jobs:
        assert job.finetune_id is None or owners[job.finetune_id] == job.id
        assert not (job.settled and job.owner)
        assert job.error is None or job.error.code != "internal_error", job.error


def check_events(client: Any, jobs: list[JobRecord], ended: Mapping[str, int]) -> None:
    """Events tell what happened in order and once; ``ended`` is how often a job may have ended."""
    stream: dict[str, list[dict[str, Any]]] = {job.id: [] for job in jobs}
    for _, fields in client.xrange(keys.events()):
        event = json.loads(fields["event"])
        stream[event["subject"]].append(event)
    for job in jobs:
        events = stream[job.id]
        assert events == [json.loads(row) for row in client.lrange(keys.job_events(job.id), 0, -1)]
        assert [event["id"] for event in events] == [f"{job.id}-{number + 1}" for number in range(job.event_seq)]
        states = [STATES[event["type"]] for event in events if event["type"] in STATES]
        assert states[0] is JobState.ACCEPTED
        assert states[-1] is job.state
        for before, after in itertools.pairwise(states):
            assert after in TRANSITIONS[before], states
        ends = sum(state.terminal for state in states)
        assert ends == ended[job.id] - (not job.state.terminal), states


def wrong_with_success(job: JobRecord, events: list[Event], trainings: list[dict[str, Any]]) -> Iterator[str]:
    """Yield what is wrong with a job that should have succeeded, with one training, once, and its own weights."""
    if job.state is not JobState.SUCCEEDED:
        yield f"it ended as {job.state}: {job.error} {job.evidence}"
        return
    its_own = [row for row in trainings if row["name"] == job.request.name]
    if len(its_own) != 1:
        yield f"it was submitted {len(its_own)} times"
        return
    assert job.weights is not None
    body = Path(urlsplit(job.weights.url).path).read_bytes()
    made = Weights(its_own[0]["model_id"], 0, len(body)).digests()
    if (hashlib.md5(body).hexdigest(), hashlib.sha256(body).hexdigest()) != (made.md5, job.weights.sha256):
        yield "its weights are not those of the training"
    if [event.id for event in events] != [f"{job.id}-{number + 1}" for number in range(job.event_seq)]:
        yield f"its events are numbered {[event.id for event in events]}"
    ends = [event.kind for event in events if event.kind in _ENDS]
    if ends != [EventType.SUCCEEDED]:
        yield f"it ended with the events {ends}"
