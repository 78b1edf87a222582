"""Finding out whether a submit of unknown outcome started a training. Never sends one; at most allows the next."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote, urlsplit

import structlog

from finetune_queue.contract import MOVED_ON, JobRecord, JobState, WaitReason
from finetune_queue.store import CallClass, Change, OwnedElsewhereError, room_score
from finetune_worker.container import Container
from finetune_worker.segmind.errors import MalformedReply, Rejected
from finetune_worker.segmind.models import FinetuneDetails, FinetuneItem
from finetune_worker.stages.calls import PARKED, ask
from finetune_worker.stages.claim import until_deadline
from finetune_worker.stages.outcome import Attention, Done, Outcome, Wait

log = structlog.get_logger(__name__)

LOOKS = 3
"""Complete lists without the training before it counts as absent, besides the settle time."""

CLOCK_SKEW = timedelta(minutes=2)
"""How far Segmind's clock may be from the Redis server's."""


@dataclass(slots=True)
class Sightings:
    """The trainings in one list that may be the job's."""

    marked: list[str] = field(default_factory=list)
    alike: list[str] = field(default_factory=list)


def sight(job: JobRecord, item: FinetuneItem, sightings: Sightings) -> None:
    """Note the item if it may be the job's training.

    Our own upload is named after the job, so its URL is an exact mark, however Segmind spells the URL. A URL that was
    passed through is not ours alone: the name must match too, and only the details' creation time can tell. An item
    that does not say what it was trained on proves nothing: its details do.
    """
    if item.finetune_id in job.ruled_out:
        return
    source = item.data_source_path
    if marks(job):
        if source is not None:
            if job.id in unquote(source):
                sightings.marked.append(item.finetune_id)
            return
    elif source is not None and not _same_place(source, job.dataset_url or ""):
        return
    if item.name in {None, job.request.name}:
        sightings.alike.append(item.finetune_id)


def marks(job: JobRecord) -> bool:
    """Tell whether the job's dataset is our own upload, whose URL names the job."""
    return job.id in (job.dataset_url or "")


def _same_place(one: str, other: str) -> bool:
    """Tell whether two URLs differ in spelling or query only."""
    try:
        a, b = urlsplit(unquote(one)), urlsplit(unquote(other))
    except ValueError:  # one of them is none, which must not stop a sweep
        return one == other
    return (a.netloc.lower(), a.path) == (b.netloc.lower(), b.path)


def reconcile(container: Container, job: JobRecord, sightings: Sightings, *, asked_ms: int, complete: bool) -> str:
    """Act on what one list showed; returns a word for the log. ``asked_ms`` is when the list was asked for."""
    marked, alike = (list(dict.fromkeys(found)) for found in (sightings.marked, sightings.alike))  # a list may repeat
    if marked:
        if len(marked) > 1:
            log.error("training_paid_twice", job_id=job.id, finetune_ids=marked)
        return _adopt(container, job, marked[-1])  # newest first, as far as was seen: the earliest
    alike = [found for found in alike if container.jobs.owner_of(found) is None]
    if alike and job.state is JobState.SUBMITTING:
        _examine_soon(container, job, alike)
        return "candidate"
    # Only a list asked for after the POST must have ended says anything about its absence.
    settings = container.settings
    over_ms = (job.intent_ms or 0) + int(settings.segmind_call_timeout * 1000)
    if not complete or asked_ms <= over_ms:
        return "too early to say"
    looks = job.looks + 1
    delay = settings.finetune_unseen_limit
    if job.state is not JobState.NEEDS_ATTENTION:  # which waits for a person, however long
        delay = until_deadline(job, delay)
    if (
        looks < LOOKS
        or asked_ms <= over_ms + int(settings.finetune_settle_time * 1000)
        or (job.state is JobState.NEEDS_ATTENTION)
    ):
        container.jobs.transition(job, Change(delay=delay), looks=looks)
        return "not seen"
    log.warning("submit_absent", job_id=job.id, looks=looks)
    container.jobs.transition(
        job,
        Change(delay=until_deadline(job, PARKED), room_score=room_score(CallClass.SUBMIT, job)),
        intent_ms=None,
        looks=0,
        waiting_for=WaitReason.API_SLOT,
        evidence=job.with_evidence(f"{looks} complete lists over the settle time do not have it: it may be sent again"),
    )
    return "absent"


def trained_by(finetune_id: str, job: JobRecord) -> dict[str, Any]:
    """Return the fields of a job that a training now belongs to."""
    return {
        "finetune_id": finetune_id,
        "submitted_ms": job.intent_ms,
        "waiting_for": WaitReason.PROVIDER,
        "candidates": [],
    }


def _adopt(container: Container, job: JobRecord, finetune_id: str) -> str:
    change = Change(delay=until_deadline(job, container.settings.finetune_unseen_limit), own=finetune_id)
    evidence = job.with_evidence(f"found as training {finetune_id}")
    fields = {**MOVED_ON, **trained_by(finetune_id, job), "evidence": evidence}
    try:
        container.jobs.transition(job, change, to=JobState.TRAINING, **fields)
    except OwnedElsewhereError as error:
        log.warning("candidate_owned", job_id=job.id, finetune_id=finetune_id, owner=error.owner)
        container.jobs.transition(job, Change(delay=change.delay), ruled_out=[*job.ruled_out, finetune_id])
        return "owned by another job"
    log.info("submit_adopted", job_id=job.id, finetune_id=finetune_id)
    return "adopted"


def _examine_soon(container: Container, job: JobRecord, candidates: list[str]) -> None:
    change = Change(delay=until_deadline(job, PARKED), room_score=room_score(CallClass.FINISH, job))
    container.jobs.transition(job, change, candidates=candidates, waiting_for=WaitReason.API_SLOT)


def examine_candidate(container: Container, job: JobRecord) -> Outcome:
    """Ask for the details of the first candidate: only one created when the submit was on its way is the job's."""
    candidate, *others = job.candidates
    what = f"look at training {candidate}, which may be this job's"
    try:
        details = ask(container, job, CallClass.FINISH, what, lambda client: client.details(candidate))
    except (Rejected, MalformedReply) as error:
        return Attention(
            f"needs attention: training {candidate} may be this job's, but it cannot be looked at",
            f"details of {candidate}: {error.detail}",
        )
    if isinstance(details, Wait):
        return details
    if details.created_ts is None and not (marks(job) and details.data_source_path is not None):
        return Attention(
            f"needs attention: training {candidate} may be this job's, but Segmind does not say when it was created",
            f"training {candidate} has the same name and dataset, and no creation time",
        )
    if _is_its(container, job, details):
        return Done(
            f"found as training {candidate}",
            to=JobState.TRAINING,
            own=candidate,
            fields={
                **trained_by(candidate, job),
                "evidence": job.with_evidence(f"found as training {candidate}, created {details.created_ts}"),
            },
        )
    return Wait(
        f"training {candidate} is an older one of the same name and dataset: still looking",
        WaitReason.PROVIDER,
        container.settings.finetune_unseen_limit,
        fields={"candidates": others, "ruled_out": [*job.ruled_out, candidate]},
    )


def _is_its(container: Container, job: JobRecord, details: FinetuneDetails) -> bool:
    if marks(job) and details.data_source_path is not None:
        return job.id in unquote(details.data_source_path)
    sent = datetime.fromtimestamp((job.intent_ms or 0) / 1000, tz=UTC)
    ended = sent + timedelta(seconds=container.settings.segmind_call_timeout)
    created = details.created_ts
    return created is not None and sent - CLOCK_SKEW <= created <= ended + CLOCK_SKEW
