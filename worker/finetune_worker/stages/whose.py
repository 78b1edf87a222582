"""Which job a training belongs to, when the answer to a submit was lost. Only rules on what Segmind shows: no calls.

A dataset that we uploaded is named after its job, so its URL marks the training as that job's, however Segmind spells
the URL. But whoever knows the URL can train on it too, and a public URL that was passed on may be the dataset of many
jobs. Then the name, the prompt and the creation time decide.
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
    """How well a training fits a job, by dataset and name."""

    MARKED = auto()  # on the job's own upload, and with the job's name
    ALIKE = auto()  # with the job's dataset and name, as far as Segmind shows them
    MISNAMED = auto()  # on the job's own upload, and with another name


def upload_name(job: JobRecord) -> str:
    """Return the name of the job's own upload. Its time is in it as a job that is made again from a caller's key, once
    the one before is forgotten, has the same id."""
    return f"{job.id}-{job.created_ms}"


def mark_of(job: JobRecord) -> str | None:
    """Return the part of a URL that only the job's own upload has; None if the job has no upload of its own. One from
    before an upgrade may be named after the job's id alone."""
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
    """Return how well the training fits the job, None if not at all. One that does not show its dataset is ``ALIKE`` at
    most."""
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
    """Tell whether a training that a person names can be the job's. One with the job's name and an upload that has the
    job's id in its URL can, whatever the rest of its mark: when Redis lost the job and its idempotency key made it
    again, the mark has another time."""
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
    """Note the item if it may be the job's training, unless it was looked at before and ruled out or set aside."""
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
    """Whether a training is the job's."""

    ITS = auto()  # it is
    ANOTHERS = auto()  # it is not, for good: it is ruled out
    SOON = auto()  # will be known once another job's submit is answered
    NOT_NOW = auto()  # rather not: it is set aside. But while it is there, the job's training does not count as absent
    UNCLEAR = auto()  # only a person can tell


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether a training is the job's, and why. ``created_ms`` is set if nothing but its creation time speaks against
    it."""

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

    ``others`` are the account's other jobs that may have been submitted and have no training yet. ``known`` are other
    trainings that may be the job's and belong to no job, with their creation times (ms), as far as these are known.
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
    """Share out trainings, given with their creation times (ms), among jobs that asked for the same training. Returns
    the job's id for each training that fits one.

    From the latest on, each goes to the last job that was submitted before it. If each went to any job that it fits,
    another job might be left with one that is too old or too young, and would be submitted, and charged, again.
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
    """Return by how much a training was created too early or too late to be from the job's submit; 0 if it may be."""
    intent_ms = job.intent_ms or 0
    early = timedelta(milliseconds=intent_ms - _at_latest(created_ms)) - CLOCK_SKEW
    late = timedelta(milliseconds=created_ms - intent_ms) - timedelta(seconds=call_timeout) - CLOCK_SKEW
    return max(early, late, timedelta(0))


def _at_latest(created_ms: int) -> int:
    """Return when (ms) a training may have been created at the latest: the documented times have whole seconds (Fast
    Flux API, section 2), and without the fraction it would seem older than its submit."""
    return created_ms + 999 if created_ms % 1000 == 0 else created_ms


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
