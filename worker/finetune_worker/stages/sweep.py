"""The sweep: one list call sees every training of an account, and every job that it shows to have moved is moved.

There may be thousands of them, so a look keeps little of each; the whole records are read again, a page at a time, when
it is known what the list shows.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Self

import structlog

from finetune_queue import tracing
from finetune_queue.contract import MOVED_ON, RELEASED, EventType, JobRecord, JobState, Stage, WaitReason
from finetune_queue.store import (
    UNKNOWN_STATUSES,
    AlreadySweptError,
    CallClass,
    Change,
    ConflictError,
    NoSlot,
    room_score,
)
from finetune_worker.container import Container, UnknownAccountKeyError
from finetune_worker.segmind.client import SegmindClient
from finetune_worker.segmind.errors import SegmindError
from finetune_worker.segmind.models import FinetuneDetails, FinetuneItem
from finetune_worker.stages.cadence import affordable, began_ms, interval, usual_time
from finetune_worker.stages.calls import PARKED, AccountPausedError, StaleCallError, call_api, longest_call
from finetune_worker.stages.claim import until_deadline
from finetune_worker.stages.observe import Observation, observe
from finetune_worker.stages.poll import look_again_in, training_time_left
from finetune_worker.stages.reconcile import Undecided, reconcile
from finetune_worker.stages.whose import Sightings, sight

log = structlog.get_logger(__name__)

PAGE = 200
"""Jobs that are read and moved at once."""

ACTING = 5.0
"""Seconds that a sweep may need, after its call, to act on what it saw. If it takes longer, it counts as dead, and
another sweep makes a second call. After one that did die, the account is not looked at for as long."""

_SWEPT = "nothing to do: another message already swept the account"


@dataclass(frozen=True, slots=True)
class _Watched:
    """What a look keeps of a job whose training is known; ``began_ms`` as in :mod:`~finetune_worker.stages.cadence`,
    ``timed`` if that is when its training was submitted, and not when a person named it."""

    id: str
    version: int
    state: JobState
    wants_details: bool
    began_ms: int
    timed: bool

    @classmethod
    def of(cls, job: JobRecord) -> Self:
        """Keep this much of the job."""
        timed = job.submitted_ms is not None
        return cls(job.id, job.version, job.state, job.wants_details, began_ms(job), timed)


@dataclass(slots=True)
class _Look:
    """One look at Segmind for an account's tracked jobs, and what it showed of them: ``found`` of those whose training
    is known, ``sightings`` of those that are ``unsure``. Of the account's other trainings nothing is kept."""

    tracked: int = 0
    by_finetune_id: dict[str, _Watched] = field(default_factory=dict)
    unsure: list[JobRecord] = field(default_factory=list)
    found: dict[str, FinetuneItem | FinetuneDetails] = field(default_factory=dict)
    sightings: dict[str, Sightings] = field(default_factory=dict)
    complete: bool = False

    @classmethod
    def at(cls, jobs: Iterable[JobRecord]) -> Self:
        """Prepare the look at the jobs' trainings."""
        look = cls()
        for job in jobs:
            look.tracked += 1
            if job.finetune_id is not None:
                look.by_finetune_id[job.finetune_id] = _Watched.of(job)
            elif not job.owner:
                # A job that a worker holds is in the middle of its submit, or of its own look: it is left alone.
                look.unsure.append(job)
                look.sightings[job.id] = Sightings()
        return look

    def run(self, client: SegmindClient) -> None:
        """Make the one call: the list, or the details of an only job."""
        if len(self.by_finetune_id) == 1 and not self.unsure:
            [(finetune_id, job)] = self.by_finetune_id.items()
            self.found[job.id] = client.details(finetune_id)
            return
        with client.list_finetunes() as listing:
            self._read(listing)
            # An item that could not be read may be the very one that is looked for.
            self.complete = listing.complete and not listing.skipped

    def _read(self, items: Iterable[FinetuneItem]) -> None:
        alike: dict[object, FinetuneItem] = {}
        for item in items:
            job = self.by_finetune_id.get(item.finetune_id)
            if job is not None:
                # All that `observe` reads: most trainings show the same, and one item will do for them.
                shown = (item.status, item.error_message, item.cloud_storage_url)
                self.found[job.id] = alike.setdefault(shown, item)
            for doubtful in self.unsure:
                sight(doubtful, item, self.sightings[doubtful.id])


def sweep_if_due(container: Container, account: str) -> str:
    """Sweep, unless another message has led to it. While transfers keep all threads busy, a message is sent anew each
    time that it was not picked up; all but one of them would read all trainings, to be refused their call."""
    if not container.budget.wants_sweep(account):
        return _SWEPT
    return sweep(container, account)


def sweep(container: Container, account: str) -> str:
    """Look at all trainings of the account with one call; returns a sentence on what it showed."""
    try:
        client = container.segmind(account)  # before the slot, as this worker may have no key for the account
    except UnknownAccountKeyError as error:
        log.warning("sweep_without_key", account=account, detail=str(error))
        return f"no sweep: {error}"
    look = _Look.at(container.jobs.tracked(account))
    if not (look.by_finetune_id or look.unsure):
        return "no trainings to look at"
    try:
        slot = container.budget.take_to_sweep(account, longest_call(container) + ACTING)
    except AlreadySweptError:
        return _SWEPT
    if isinstance(slot, NoSlot):
        return f"waiting for an API slot ({slot.reason})"
    trouble: str | None = None
    try:
        call_api(container.budget, slot, lambda: look.run(client))
    except (AccountPausedError, StaleCallError, SegmindError) as error:
        trouble = str(error)
        log.warning("sweep_incomplete", account=account, detail=trouble)
    moved = _act_on(container, account, look, asked_ms=slot.at_ms)
    _plan_next(container, account, look, now_ms=slot.at_ms, looked=trouble is None)
    log.info("account_swept", account=account, tracked=look.tracked, seen=len(look.found), moved=moved)
    seen = f"saw {len(look.found)} of {look.tracked} trainings, {moved} moved"
    return seen if trouble is None else f"{seen}; {trouble}"


def _act_on(container: Container, account: str, look: _Look, *, asked_ms: int) -> int:
    # A job whose training the list lacks comes to the poll stage by its deadline, which asks for the details.
    seen = [job for job in look.by_finetune_id.values() if job.id in look.found]
    moved = sum(
        _act_on_page(container, look, seen[start : start + PAGE], asked_ms=asked_ms)
        for start in range(0, len(seen), PAGE)
    )
    undecided = Undecided(container, account)
    for job in look.unsure:
        seen_of_it = look.sightings[job.id]
        try:
            result = reconcile(container, job, seen_of_it, undecided, asked_ms=asked_ms, complete=look.complete)
        except ConflictError:
            result = "overtaken"
        log.info("submit_reconciled", job_id=job.id, result=result)
        tracing.link(job.traceparent)
    return moved


def _act_on_page(container: Container, look: _Look, page: list[_Watched], *, asked_ms: int) -> int:
    moved = 0
    going_on: list[JobRecord] = []
    versions = {job.id: job.version for job in page}
    unchanged: list[tuple[JobRecord, float]] = []
    for job in container.jobs.get_many(list(versions)):
        if job.version != versions[job.id]:
            log.info("sweep_overtaken", job_id=job.id)  # what the list shows may be older than what moved it
            continue
        observation = observe(job, look.found[job.id])
        if observation.unknown_status:
            container.counters.add(UNKNOWN_STATUSES)
        if not observation.news:
            # Not one that a worker holds: its deadline is the lease, by which a dead one is noticed.
            if job.waiting_for is WaitReason.PROVIDER and not job.owner:
                unchanged.append((job, look_again_in(container, job, asked_ms)))
                continue
            if not _need_not_look(container, job, asked_ms):
                continue
        try:
            then = _move(container, job, observation, asked_ms)
        except ConflictError:
            log.info("sweep_overtaken", job_id=job.id)
        else:
            moved += 1
            tracing.link(job.traceparent)
            if not then.state.terminal and then.stage is not Stage.POLL:
                going_on.append(then)
    container.deadlines.put_off(unchanged)
    container.messenger.start_many(going_on)
    return moved


def _need_not_look(container: Container, job: JobRecord, asked_ms: int) -> bool:
    """Tell whether the job, which had not been seen for long and so waits for a call to look at its training alone,
    needs that call no more, as this look has seen the training. After a pause or an outage this may be so for all of an
    account's trainings, and their calls would all go before any submit."""
    parked = job.waiting_for is not None and not job.owner
    return parked and not job.wants_details and training_time_left(container, job, asked_ms) > 0


def _move(container: Container, job: JobRecord, observation: Observation, asked_ms: int) -> JobRecord:
    to, fields = observation.to, observation.fields
    if to is not None and to.terminal:
        ended = container.jobs.transition(job, Change(), to=to, **{**RELEASED, **fields})
        container.count_ended(ended)
        return ended
    if to is not None or fields.get("deployed"):
        event = EventType.PROGRESS if to is None else None
        change = Change(delay=container.settings.finetune_handover)
        return container.jobs.transition(job, change, to=to, event=event, **{**MOVED_ON, **fields})
    event = EventType.PROGRESS if fields else None
    if observation.wants_details or job.wants_details:
        change = Change(delay=until_deadline(job, PARKED), room_score=room_score(CallClass.FINISH, job))
        fields = {**fields, "wants_details": True, "waiting_for": WaitReason.API_SLOT}
    else:
        change = Change(delay=look_again_in(container, job, asked_ms))
        fields = {**fields, "waiting_for": WaitReason.PROVIDER, "outages": 0, "error": None}
    return container.jobs.transition(job, change, event=event, **{**RELEASED, **fields})


def _ended(job: _Watched, seen: FinetuneItem | FinetuneDetails | None) -> bool:
    """Tell whether what the job waits for was seen to be over, so that no sweep need come for it."""
    if seen is None:
        return False
    if job.state is JobState.DEPLOYING:
        return seen.available or seen.undeployed
    return seen.trained or seen.failed


def _plan_next(container: Container, account: str, look: _Look, *, now_ms: int, looked: bool) -> None:
    """Set when the account's next sweep is."""
    settings, status = container.settings, container.accounts.status(account)
    watched = look.by_finetune_id.values()
    still = [job.began_ms for job in watched if not _ended(job, look.found.get(job.id))]
    still += [began_ms(job) for job in look.unsure]
    shortest = settings.finetune_poll_min_interval
    seconds_to_next = partial(
        interval,
        [_seconds(since_ms, now_ms) for since_ms in still],
        usual=_learn_usual(container, account, status.usual_training, look, now_ms),
        shortest=shortest,
        unseen_limit=settings.finetune_unseen_limit,
    )
    now, idle = (
        affordable(status.limits, busy=busy, busy_share=settings.finetune_poll_share) for busy in (status.busy, False)
    )
    container.sweep_clock.swept(
        account,
        seconds_to_next(affordable_every=now),
        idle=seconds_to_next(affordable_every=idle),
        affordable=now,
        gap=shortest,
        looked=looked,
    )


def _learn_usual(container: Container, account: str, known: float | None, look: _Look, now_ms: int) -> float | None:
    """Return how long (s) the account's trainings usually take, and store it if this look has changed it."""
    lengths = [
        _seconds(job.began_ms, now_ms)
        for job in look.by_finetune_id.values()
        if job.state is JobState.TRAINING
        and job.timed
        and not job.wants_details  # it was over at an earlier look
        and (seen := look.found.get(job.id)) is not None
        and seen.trained
    ]
    usual = usual_time(known, lengths)
    if usual is not None and usual != known:
        container.sweep_clock.learn_training(account, usual)
    return usual


def _seconds(since_ms: int, now_ms: int) -> float:
    return max(0.0, (now_ms - since_ms) / 1000)
