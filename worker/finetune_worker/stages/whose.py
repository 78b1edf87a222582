"""Whose a training is when the answer to a submit was lost: what follows from what Segmind shows of it, and no call.

Our own upload is named after its job, so its URL is a mark, however Segmind spells it. But whoever knows that URL can
train on it too, and a URL that was passed through is not one job's alone: then the name, the prompt and the creation
time must tell.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum, auto
from urllib.parse import unquote, urlsplit

from finetune_queue.contract import JobRecord
from finetune_queue.contract.job import iso_time
from finetune_queue.redaction import redact_text
from finetune_worker.segmind.models import FinetuneDetails, FinetuneItem
from finetune_worker.stages.training_request import training_request

CLOCK_SKEW = timedelta(minutes=2)
"""How far Segmind's clock may be from the Redis server's."""

NEAR = timedelta(minutes=30)
"""How far from the submit a matching training may have been created and still cast doubt on "there is none". With a
wrong clock or a late list, equal jobs may have taken each other's training, which leaves the last job one that looks
too old."""


class Likeness(Enum):
    """How like a job's training one is."""

    MARKED = auto()  # on the job's own upload, and of its name
    ALIKE = auto()  # as far as it says, of its name and dataset
    MISNAMED = auto()  # on the job's own upload, and of another name


def upload_name(job: JobRecord) -> str:
    """Return the name of the job's own upload. Its time is in it as a job that is made again from a caller's key, once
    the one before is forgotten, has the same id."""
    return f"{job.id}-{job.created_ms}"


def mark_of(job: JobRecord) -> str | None:
    """Return what marks a URL as that of the job's own upload; None if its dataset is none. An upload from before an
    upgrade may be named after the job's id alone."""
    url = unquote(job.dataset_url or "")
    return next((mark for mark in (upload_name(job), job.id) if mark in url), None)


def same_place(one: str, other: str) -> bool:
    """Tell whether two URLs differ in spelling or query only."""
    try:
        a, b = urlsplit(unquote(one)), urlsplit(unquote(other))
    except ValueError:  # one of them is none, which must not stop a sweep
        return one == other
    return (a.netloc.lower(), a.path) == (b.netloc.lower(), b.path)


def likeness(job: JobRecord, item: FinetuneItem | FinetuneDetails) -> Likeness | None:
    """Return how like the job's training the item is. One that does not say its dataset proves nothing."""
    source, named, mark = item.data_source_path, item.name in {None, job.request.name}, mark_of(job)
    if source is not None and mark is not None:
        if mark not in unquote(source):
            return None
        if not named:
            return Likeness.MISNAMED
        return Likeness.MARKED if item.name is not None else Likeness.ALIKE
    if not named or (source is not None and not same_place(source, job.dataset_url or "")):
        return None
    return Likeness.ALIKE


def may_be_named(job: JobRecord, details: FinetuneDetails) -> bool:
    """Tell whether a training that a person names can be the job's. One on an upload of the same id is, if its name is:
    a job that Redis lost and its key made again has another time in its mark."""
    if likeness(job, details) in {Likeness.MARKED, Likeness.ALIKE}:
        return True
    return details.name == job.request.name and job.id in unquote(details.data_source_path or "")


@dataclass(slots=True)
class Sightings:
    """The trainings in one list that may be the job's, in the list's order: the newest first, as far as was seen."""

    marked: list[str] = field(default_factory=list)
    alike: list[str] = field(default_factory=list)
    misnamed: list[str] = field(default_factory=list)


def sight(job: JobRecord, item: FinetuneItem, sightings: Sightings) -> None:
    """Note the item if it may be the job's training, and is not known already not to be, or not for now."""
    if item.finetune_id in job.ruled_out or item.finetune_id in job.aside:
        return
    match likeness(job, item):
        case Likeness.MARKED:
            sightings.marked.append(item.finetune_id)
        case Likeness.ALIKE:
            sightings.alike.append(item.finetune_id)
        case Likeness.MISNAMED:
            sightings.misnamed.append(item.finetune_id)


class Verdict(Enum):
    """Whose a training is."""

    ITS = auto()
    ANOTHERS = auto()
    SOON = auto()  # it will be known once another job's submit is answered
    NOT_NOW = auto()  # rather another's, and a reason to doubt that there is none of the job's
    UNCLEAR = auto()  # only a person can tell


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whose a training is, and why. ``created_ms`` is set where only its time speaks against the job."""

    verdict: Verdict
    why: str
    created_ms: int | None = None


def judge(
    job: JobRecord,
    others: Sequence[JobRecord],
    details: FinetuneDetails,
    *,
    call_timeout: float,
    known: Mapping[str, int],
) -> Judgement:
    """Tell whether the training is the job's.

    ``others`` are the account's other jobs that may have been submitted and have no training yet. ``known`` are the
    creation times (ms) of the trainings that are like the job's too and are nobody's, as far as they were looked at.
    """
    training = f"training {details.finetune_id}"
    like = likeness(job, details)
    if like is None:
        place = redact_text(details.data_source_path or "no dataset")
        return Judgement(Verdict.ANOTHERS, f"{training} is named '{details.name}', on {place}")
    if like is Likeness.MISNAMED:
        return Judgement(Verdict.NOT_NOW, f"{training} has this job's dataset and is named '{details.name}'")
    rivals = [other for other in others if likeness(other, details) in {Likeness.MARKED, Likeness.ALIKE}]
    close = [rival for rival in rivals if _has_prompt(rival, details)]
    asked = _has_prompt(job, details)
    prompt = f"{training} has the same name and dataset, and another prompt"
    if like is Likeness.MARKED and not rivals:
        return Judgement(Verdict.ITS, f"{training} has its mark") if asked else Judgement(Verdict.NOT_NOW, prompt)
    if details.created_ts is None:
        return Judgement(Verdict.UNCLEAR, f"{training} has the same name and dataset, and no creation time")
    created_ms = _milliseconds(details.created_ts)
    off = _off(job, created_ms, call_timeout)
    when = f"{training} has the same name and dataset, and was created at {iso_time(created_ms)}"
    if off > NEAR or (off and not asked):
        return Judgement(Verdict.ANOTHERS, f"{when}, at another time than this job's")
    if not asked:
        if close:
            return Judgement(Verdict.ANOTHERS, f"{training} has the prompt of job {close[0].id}")
        return Judgement(Verdict.NOT_NOW, prompt)
    if off:
        return Judgement(Verdict.NOT_NOW, f"{when}, at another time than this job's", created_ms)
    timely = [rival for rival in close if not _off(rival, created_ms, call_timeout)]
    if any(rival.owner for rival in timely):
        return Judgement(Verdict.SOON, f"{training} may belong to a submit that is on its way")
    wanted = training_request(job)
    for rival in timely:
        if training_request(rival) != wanted:
            why = f"{training} may be this job's or job {rival.id}'s, whose request differs"
            return Judgement(Verdict.UNCLEAR, why)
    whose = allot({**known, details.finetune_id: created_ms}, [job, *close], call_timeout=call_timeout)
    if whose.get(details.finetune_id) == job.id:
        return Judgement(Verdict.ITS, f"{training} was created at {iso_time(created_ms)}")
    better = whose.get(details.finetune_id)
    why = "another one fits this job's submit better" if better is None else f"it fits job {better} better"
    return Judgement(Verdict.NOT_NOW, f"{training} may be this job's, but {why}", created_ms)


def allot(trainings: Mapping[str, int], jobs: Sequence[JobRecord], *, call_timeout: float) -> dict[str, str]:
    """Share out trainings, by their creation times (ms), among jobs that asked for the same: which job has which.

    From the latest on, each goes to the last job that was submitted before it. Given to any job that it fits, it may
    leave another job with one that is too old or too young, and that job would be submitted, and charged, again.
    """
    left = sorted(jobs, key=lambda job: (job.intent_ms or 0, job.id))
    whose: dict[str, str] = {}
    for finetune_id, created_ms in sorted(trainings.items(), key=lambda found: (found[1], found[0]), reverse=True):
        fit = [job for job in left if not _off(job, created_ms, call_timeout)]
        before = [job for job in fit if (job.intent_ms or 0) <= _at_latest(created_ms)]
        if fit:
            chosen = before[-1] if before else fit[0]  # the clocks differ
            whose[finetune_id] = chosen.id
            left.remove(chosen)
    return whose


def asked_alike(job: JobRecord, others: Sequence[JobRecord]) -> list[JobRecord]:
    """Return the other jobs of the job's name and dataset."""
    return [
        other
        for other in others
        if other.id != job.id
        and other.request.name == job.request.name
        and same_place(other.dataset_url or "", job.dataset_url or "")
    ]


def same_prompt(job: JobRecord, other: JobRecord) -> bool:
    """Tell whether both jobs have the same prompt."""
    return job.request.instance_prompt.strip() == other.request.instance_prompt.strip()


def _has_prompt(job: JobRecord, details: FinetuneDetails) -> bool:
    """Tell whether the details have the job's prompt, the one thing in them that tells such jobs apart."""
    return details.instance_prompt is None or details.instance_prompt.strip() == job.request.instance_prompt.strip()


def _off(job: JobRecord, created_ms: int, call_timeout: float) -> timedelta:
    """Return how far a training was created from when the job's submit was on its way; nothing if it was then."""
    intent_ms = job.intent_ms or 0
    early = timedelta(milliseconds=intent_ms - _at_latest(created_ms)) - CLOCK_SKEW
    late = timedelta(milliseconds=created_ms - intent_ms) - timedelta(seconds=call_timeout) - CLOCK_SKEW
    return max(early, late, timedelta(0))


def _at_latest(created_ms: int) -> int:
    """Return when a training may have been created at the latest: the page's times have whole seconds (Fast Flux API,
    section 2), and what is left out would make it older than its submit."""
    return created_ms + 999 if created_ms % 1000 == 0 else created_ms


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
