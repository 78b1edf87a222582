"""Finds out whether a submit of unknown outcome started a training. Sends no submit; at most it lets the stage send one
again."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import structlog

from finetune_queue.contract import FOUND, MOVED_ON, RELEASED, UNSENT, JobError, JobRecord, JobState, Stage, WaitReason
from finetune_queue.contract.job import iso_time
from finetune_queue.redaction import redact_text
from finetune_queue.store import PAID_TWICE, CallClass, Change, OwnedElsewhereError, room_score
from finetune_worker.backoff import try_again_in
from finetune_worker.container import Container
from finetune_worker.segmind.errors import MalformedReply, Rejected
from finetune_worker.segmind.models import FinetuneDetails
from finetune_worker.stages.calls import PARKED, ask_or_raise
from finetune_worker.stages.claim import Claim, until_deadline
from finetune_worker.stages.conclude import leave_to_a_person
from finetune_worker.stages.errors import again
from finetune_worker.stages.outcome import Attention, Done, Outcome, Wait
from finetune_worker.stages.whose import (
    Sightings,
    Verdict,
    allot,
    asked_alike,
    judge,
    may_be_named,
    same_prompt,
)

log = structlog.get_logger(__name__)

LOOKS = 3
"""How many complete lists must lack the training, and the settle time be over, before it counts as absent."""


class Undecided:
    """The account's jobs that may have been submitted and have no training, read when they are first asked for: to find
    them takes all of its tracked jobs, and most looks need none."""

    def __init__(self, container: Container, account: str) -> None:
        self._container = container
        self._account = account

    @cached_property
    def jobs(self) -> list[JobRecord]:
        """All of them."""
        return [job for job in self._container.jobs.tracked(self._account) if job.finetune_id is None]

    def others(self, job: JobRecord) -> list[JobRecord]:
        """Return those that are another job."""
        return [other for other in self.jobs if other.id != job.id]


def reconcile(
    container: Container, job: JobRecord, sightings: Sightings, undecided: Undecided, *, asked_ms: int, complete: bool
) -> str:
    """Bring a job whose submit had no answer further by what one list showed; returns a word for the log.

    ``asked_ms`` is when the list was asked for, ``complete`` whether it was read to its end. ``undecided`` must not
    have been read before the list: a job that was submitted since would be missing among the rivals.
    """
    if job.adopting is not None:
        return "named by hand"  # a worker is about to look at that training
    marked = _nobodys(container, job, sightings.marked)
    if marked and not asked_alike(job, undecided.jobs):
        return _adopt(container, job, marked[-1], also=marked[:-1])  # the earliest
    aside = {found: job.aside[found] for found in _nobodys(container, job, job.aside)}
    whose = _allotted(container, job, aside, undecided) if aside else {}
    if job.state is JobState.SUBMITTING:
        seen = [*marked, *_nobodys(container, job, sightings.alike)]
        # What was just seen comes first: a new training is likelier the job's than those that are left of older ones.
        new = [found for found in seen if found not in job.candidates]
        if not new and not job.candidates:
            # One that was set aside as rather another job's. That job has found its own meanwhile.
            new = [found for found, owner in whose.items() if owner == job.id]
        if new:
            _examine_soon(container, job, [*new, *job.candidates])
        if new or job.candidates:
            return "candidate"
    # That the training is missing says something only if the list was asked for after the POST had ended for certain.
    settings = container.settings
    over_ms = (job.intent_ms or 0) + int(settings.segmind_call_timeout * 1000)
    if not complete or asked_ms <= over_ms:
        return "too early to say"
    looks, for_a_person = job.looks + 1, job.state is JobState.NEEDS_ATTENTION
    if for_a_person or looks < LOOKS or asked_ms <= over_ms + int(settings.finetune_settle_time * 1000):
        delay = settings.finetune_unseen_limit
        if not for_a_person:  # its caller's deadline does not end a job that waits for a person
            delay = until_deadline(job, delay)
        container.jobs.transition(job, Change(delay=delay), looks=looks)
        return "not seen"
    misnamed = _nobodys(container, job, sightings.misnamed)
    doubts = [_doubt(job, found, aside.get(found)) for found in [*misnamed, *aside] if found not in whose]
    if doubts:
        # One of these may be the job's after all, and is paid for: to submit again is for a person to decide.
        log.warning("submit_in_doubt", job_id=job.id, doubts=doubts)
        leave_to_a_person(container, job, f"the lists do not settle it: {'; '.join(doubts)}")
        return "in doubt"
    return _absent(container, job, looks)


def _nobodys(container: Container, job: JobRecord, found: Iterable[str]) -> list[str]:
    """Return those of the trainings that belong to no other job, each once: a list may repeat itself."""
    return [
        finetune_id for finetune_id in dict.fromkeys(found) if container.jobs.owner_of(finetune_id) in {None, job.id}
    ]


def _allotted(
    container: Container, job: JobRecord, aside: dict[str, int | None], undecided: Undecided
) -> dict[str, str]:
    """Share out the trainings that were set aside for their creation time alone, among this job and its rivals."""
    rivals = [other for other in asked_alike(job, undecided.jobs) if same_prompt(job, other)]
    times = {found: created_ms for found, created_ms in aside.items() if created_ms is not None}
    return allot(times, [job, *rivals], call_timeout=container.settings.segmind_call_timeout)


def _doubt(job: JobRecord, finetune_id: str, created_ms: int | None) -> str:
    if created_ms is None:
        return f"training {finetune_id} has this job's dataset, and another name or prompt"
    at, sent = iso_time(created_ms), iso_time(job.intent_ms or 0)
    return (
        f"training {finetune_id} has the same name and dataset, and was created at {at}; the submit was sent at {sent}"
    )


def _absent(container: Container, job: JobRecord, looks: int) -> str:
    """Let the submit be sent again: it started no training."""
    settings = container.settings
    log.warning("submit_absent", job_id=job.id, looks=looks)
    evidence = job.with_evidence(f"{looks} complete lists over the settle time do not show it: it may be sent again")
    absent = {**UNSENT, "evidence": evidence}
    if job.attempts >= settings.finetune_max_attempts:
        # Each of its submits had an answer that was neither a yes nor a no, and none was an outage: without an end to
        # the attempts it would be sent for ever.
        error = _unanswered()
        fields = {**RELEASED, "failed_stage": Stage.SUBMIT, "error": error, **absent}
        container.count_ended(container.jobs.transition(job, Change(), to=JobState.FAILED, **fields))
        return "absent once too often"
    # It stays in the day's count of submits: if the list is wrong, it was charged.
    change = Change(delay=until_deadline(job, PARKED), room_score=room_score(CallClass.SUBMIT, job))
    container.jobs.transition(job, change, waiting_for=WaitReason.API_SLOT, **absent)
    return "absent"


def _unanswered() -> JobError:
    return JobError(
        code="submit_unanswered",
        stage=Stage.SUBMIT,
        message="No submit ever had a clear answer, and Segmind's list shows that none was accepted.",
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


def _adopt(container: Container, job: JobRecord, finetune_id: str, *, also: Sequence[str]) -> str:
    """Give the job its training; ``also`` are others with its mark, which were paid for in vain."""
    change = Change(delay=until_deadline(job, container.settings.finetune_unseen_limit), own=finetune_id)
    found = f"found as training {finetune_id}"
    if also:
        found += f"; paid for more than once: also as {', '.join(also)}"
    evidence = job.with_evidence(found)
    fields = {**MOVED_ON, **trained_by(finetune_id, job), "evidence": evidence}
    try:
        container.jobs.transition(job, change, to=JobState.TRAINING, **fields)
    except OwnedElsewhereError as error:
        log.warning("candidate_owned", job_id=job.id, finetune_id=finetune_id, owner=error.owner)
        container.jobs.transition(job, Change(delay=change.delay), ruled_out=[*job.ruled_out, finetune_id])
        return "owned by another job"
    if also:
        container.counters.add(PAID_TWICE)  # only now: a look that came to nothing is repeated
        log.error("training_paid_twice", job_id=job.id, finetune_ids=[finetune_id, *also])
    log.info("submit_adopted", job_id=job.id, finetune_id=finetune_id)
    return "adopted"


def _examine_soon(container: Container, job: JobRecord, candidates: list[str]) -> None:
    change = Change(delay=until_deadline(job, PARKED), room_score=room_score(CallClass.FINISH, job))
    aside = {found: created_ms for found, created_ms in job.aside.items() if found not in candidates}
    container.jobs.transition(job, change, candidates=candidates, aside=aside, waiting_for=WaitReason.API_SLOT)


def examine_candidate(container: Container, claim: Claim) -> Outcome:
    """Ask for the details of the first candidate, and take it if it is the job's."""
    job = claim.job
    candidate = job.candidates[0]
    owner = container.jobs.owner_of(candidate)
    if owner not in {None, job.id}:
        return _next(
            container, job, f"training {candidate} belongs to job {owner}", ruled_out=[*job.ruled_out, candidate]
        )
    details = _look_at(container, claim, candidate)
    # `outages` counts such answers here. An outage counts there, too, but leaves an error: a person is asked because of
    # answers alone.
    failures = (0 if job.error is not None else job.outages) + 1
    if isinstance(details, Attention) and failures < container.settings.finetune_max_attempts:
        # What made Segmind's answer to the submit unreadable may not be over.
        delay, fields = try_again_in(container.settings, failures), {"outages": failures, "error": None}
        return Wait(f"{details.evidence}: looking again", WaitReason.PROVIDER, delay, fields=fields)
    if not isinstance(details, FinetuneDetails):
        return details
    free = _nobodys(container, job, job.aside)
    found = judge(
        job,
        Undecided(container, job.account).others(job),
        details,
        call_timeout=container.settings.segmind_call_timeout,
        known={other: created_ms for other in free if (created_ms := job.aside[other]) is not None},
    )
    match found.verdict:
        case Verdict.ITS:
            return _found(job, candidate, f"found: {found.why}")
        case Verdict.ANOTHERS:
            return _next(container, job, found.why, ruled_out=[*job.ruled_out, candidate])
        case Verdict.NOT_NOW:
            return _next(container, job, found.why, aside={**job.aside, candidate: found.created_ms})
        case Verdict.SOON:
            delay = container.settings.segmind_call_timeout
            return Wait(f"{found.why}: still looking", WaitReason.PROVIDER, delay, fields=_ANSWERED)
        case Verdict.UNCLEAR:
            return Attention(f"needs attention: {found.why}", found.why)


def examine_named(container: Container, claim: Claim, finetune_id: str) -> Outcome:
    """Look at the training that a person named as the job's, and take it unless it plainly is another's."""
    job = claim.job
    details = _look_at(container, claim, finetune_id)
    if not isinstance(details, FinetuneDetails):
        return details
    if not may_be_named(job, details):
        said = f"named '{details.name}', trained on {redact_text(details.data_source_path or 'no dataset')}"
        return Attention(
            f"needs attention: training {finetune_id}, which was named by hand, is not this job's: it is {said}",
            f"training {finetune_id} is {said}",
        )
    # By its own id: Segmind may find it by another spelling, and no two jobs may have it.
    return _found(job, details.finetune_id, f"training {details.finetune_id} was adopted by hand")


def _look_at(container: Container, claim: Claim, finetune_id: str) -> FinetuneDetails | Outcome:
    what = f"look at training {finetune_id}, which may be this job's"
    try:
        return ask_or_raise(container, claim, CallClass.FINISH, what, lambda client: client.details(finetune_id))
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


_ANSWERED: Mapping[str, Any] = {"outages": 0, "error": None}
"""The fields of a job whose call had a good answer: the outages before it are over."""


def _next(container: Container, job: JobRecord, why: str, **fields: Any) -> Wait:
    """Drop the first candidate. The next one's turn is now; without one, the job waits for the next list."""
    others = job.candidates[1:]
    delay = 0.0 if others else container.settings.finetune_unseen_limit
    return Wait(
        f"{why}: still looking", WaitReason.PROVIDER, delay, fields={"candidates": others, **_ANSWERED, **fields}
    )
