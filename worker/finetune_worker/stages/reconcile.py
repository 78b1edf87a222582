"""Finding out whether a submit of unknown outcome started a training. Never sends one; at most allows the next."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote, urlsplit

import structlog

from finetune_queue.contract import FOUND, MOVED_ON, RELEASED, UNSENT, JobError, JobRecord, JobState, Stage, WaitReason
from finetune_queue.store import CallClass, Change, OwnedElsewhereError, room_score
from finetune_worker.container import Container
from finetune_worker.segmind.errors import MalformedReply, Rejected
from finetune_worker.segmind.models import FinetuneDetails, FinetuneItem
from finetune_worker.stages.calls import PARKED, ask
from finetune_worker.stages.claim import until_deadline
from finetune_worker.stages.errors import again
from finetune_worker.stages.outcome import Attention, Done, Outcome, Wait
from finetune_worker.stages.training_request import training_request

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


def sight(job: JobRecord, item: FinetuneItem | FinetuneDetails, sightings: Sightings) -> None:
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
    if job.adopting is not None:
        return "named by hand"  # which a worker is about to look at
    marked, alike = (list(dict.fromkeys(found)) for found in (sightings.marked, sightings.alike))  # a list may repeat
    if marked:
        if len(marked) > 1:
            log.error("training_paid_twice", job_id=job.id, finetune_ids=marked)
        return _adopt(container, job, marked[-1])  # newest first, as far as was seen: the earliest
    alike = [found for found in alike if container.jobs.owner_of(found) is None]
    if alike and job.state is JobState.SUBMITTING:
        if not job.candidates:  # those that are left of an earlier list come first, or it would begin anew for ever
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
    evidence = job.with_evidence(f"{looks} complete lists over the settle time do not have it: it may be sent again")
    absent = {**UNSENT, "evidence": evidence}
    if job.attempts >= settings.finetune_max_attempts:
        # Each was answered, never clearly and not by an outage: it would be sent for ever.
        error = _unanswered()
        fields = {**RELEASED, "waiting_for": None, "failed_stage": Stage.SUBMIT, "error": error, **absent}
        container.count_ended(container.jobs.transition(job, Change(), to=JobState.FAILED, **fields))
        return "absent once too often"
    # It stays in the count of the day's submits: a list that is wrong about it would make it a paid one.
    change = Change(delay=until_deadline(job, PARKED), room_score=room_score(CallClass.SUBMIT, job))
    container.jobs.transition(job, change, waiting_for=WaitReason.API_SLOT, **absent)
    return "absent"


def _unanswered() -> JobError:
    return JobError(
        code="submit_unanswered",
        stage=Stage.SUBMIT,
        message="Submits were answered again and again, never clearly, and Segmind's list shows that none was taken.",
        action=f"See the workers' log for submit_outcome_unknown, and Segmind's status; then {again(Stage.SUBMIT)}.",
    )


def trained_by(finetune_id: str, job: JobRecord) -> dict[str, Any]:
    """Return the fields of a job that a training now belongs to."""
    return {
        **FOUND,
        "finetune_id": finetune_id,
        "submitted_ms": job.intent_ms,
        "waiting_for": WaitReason.PROVIDER,
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
    """Ask for the details of the first candidate. The job's is one that was created when its submit was on its way,
    has its prompt, and cannot be that of another job whose outcome is open as well."""
    candidate, *others = job.candidates
    owner = container.jobs.owner_of(candidate)
    if owner not in {None, job.id}:
        return _ruled_out(container, job, f"training {candidate} is that of job {owner}")
    details = _look_at(container, job, candidate)
    if not isinstance(details, FinetuneDetails):
        return details
    if details.created_ts is None and not (marks(job) and details.data_source_path is not None):
        return Attention(
            f"needs attention: training {candidate} may be this job's, but Segmind does not say when it was created",
            f"training {candidate} has the same name and dataset, and no creation time",
        )
    if not _is_its(container, job, details):
        return _ruled_out(container, job, f"training {candidate} is an older one of the same name and dataset")
    if not marks(job):
        doubt = _doubt(container, job, details, others)
        if doubt is not None:
            return doubt
    return _found(job, candidate, f"found as training {candidate}, created {details.created_ts}")


def examine_named(container: Container, job: JobRecord, finetune_id: str) -> Outcome:
    """Look at the training that a person named as the job's, and take it unless it plainly is another's."""
    details = _look_at(container, job, finetune_id)
    if not isinstance(details, FinetuneDetails):
        return details
    sightings = Sightings()
    sight(job.model_copy(update={"ruled_out": []}), details, sightings)
    if not sightings.marked and not sightings.alike:
        said = f"named '{details.name}', trained on {details.data_source_path}"
        return Attention(
            f"needs attention: training {finetune_id}, which was named by hand, is not this job's: it is {said}",
            f"training {finetune_id} is {said}",
        )
    return _found(job, finetune_id, f"training {finetune_id} was adopted by hand")


def _look_at(container: Container, job: JobRecord, finetune_id: str) -> FinetuneDetails | Outcome:
    what = f"look at training {finetune_id}, which may be this job's"
    try:
        return ask(container, job, CallClass.FINISH, what, lambda client: client.details(finetune_id))
    except (Rejected, MalformedReply) as error:
        return Attention(
            f"needs attention: training {finetune_id} may be this job's, but it cannot be looked at: {error.detail}",
            f"details of {finetune_id}: {error.detail}",
        )


def _found(job: JobRecord, finetune_id: str, evidence: str) -> Done:
    return Done(
        f"found as training {finetune_id}",
        to=JobState.TRAINING,
        own=finetune_id,
        fields={**trained_by(finetune_id, job), "evidence": job.with_evidence(evidence)},
    )


def _ruled_out(container: Container, job: JobRecord, why: str) -> Wait:
    candidate, *others = job.candidates
    return Wait(
        f"{why}: still looking",
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


def _doubt(container: Container, job: JobRecord, details: FinetuneDetails, others: list[str]) -> Outcome | None:
    """Return what to do while a training of the right name, dataset and time need not be the job's; None if it must."""
    candidate = details.finetune_id
    rivals = [rival for rival in _rivals(container, job) if _fits(rival, details)]
    if not _fits(job, details):
        if rivals:
            return _ruled_out(container, job, f"training {candidate} has the prompt of job {rivals[0].id}")
        if others:  # it is seen again by the next sweep, unless one of them is the job's
            what = f"training {candidate} has another prompt: looking at the others first"
            return Wait(what, WaitReason.PROVIDER, 0.0, fields={"candidates": others})
        said = f"training {candidate} has the same name and dataset, and another prompt"
        return Attention(f"needs attention: {said}", said)
    if any(rival.owner for rival in rivals):
        what = f"training {candidate} may be that of a submit that is just on its way: still looking"
        return Wait(what, WaitReason.PROVIDER, container.settings.segmind_call_timeout)
    wanted = training_request(job)
    unlike = [rival for rival in rivals if training_request(rival) != wanted]
    if unlike:
        said = f"training {candidate} may be this job's or that of job {unlike[0].id}, which asked for another one"
        return Attention(f"needs attention: {said}", said)
    return None


def _rivals(container: Container, job: JobRecord) -> list[JobRecord]:
    """Return the account's other jobs of the same name and dataset that may have been submitted and have no training.

    There are as many candidates as submits that had no answer, so to look through all that is tracked is rare.
    """
    return [
        other
        for other in container.jobs.tracked(job.account)
        if other.id != job.id
        and other.finetune_id is None
        and other.request.name == job.request.name
        and _same_place(other.dataset_url or "", job.dataset_url or "")
    ]


def _fits(job: JobRecord, details: FinetuneDetails) -> bool:
    """Tell whether the details have the job's prompt, the one thing in them that tells such jobs apart."""
    return details.instance_prompt is None or details.instance_prompt.strip() == job.request.instance_prompt.strip()
