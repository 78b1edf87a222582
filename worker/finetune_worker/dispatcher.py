"""The dispatcher: starts the rest of a job's chain when the job is due or its call slot is free.

A small thread in every worker. Any of them can do all the work; what one takes, no other gets. It sleeps until the
next deadline or free slot, or until a change makes it come earlier.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import structlog

from finetune_queue.contract import ACCESS, RELEASED, JobError, JobRecord, JobState, Stage, WaitReason
from finetune_queue.messaging import ACCEPT, BEGIN, CALL, CONTINUE, QUEUE, TRANSFER_QUEUE, stage_queue
from finetune_queue.store import (
    LOST_MESSAGES,
    SWEEP,
    TAKEOVERS,
    Budget,
    Change,
    ConflictError,
    RedisError,
    transfers_of,
)
from finetune_worker import loops
from finetune_worker.container import Container
from finetune_worker.loops import LoopStep, next_in
from finetune_worker.pulse import Loop
from finetune_worker.stages.access import end_change
from finetune_worker.stages.calls import PARKED
from finetune_worker.stages.claim import until_deadline
from finetune_worker.stages.conclude import leave_to_a_person
from finetune_worker.stages.errors import again
from finetune_worker.work_folder import WorkFolderError

log = structlog.get_logger(__name__)

BATCH = 100
"""Jobs taken at once."""

PATIENCE = 0.2
"""Seconds that are allowed for each message of a queue before one that was not picked up counts as lost."""

CROWDED = 100
"""How many transfers of jobs that go on may wait. With more, transfers are scarcer than API calls, and no upload URL is
asked for: it would expire before its upload had its turn, and cost a second call."""

CROWD_SEEN_EVERY = 1.0
"""Seconds between two counts of the transfers that wait."""

CLEAN_EVERY = 60.0
"""Seconds between removals of jobs whose retention is over."""

SEEN_EVERY = 10.0
"""Seconds between two signs that this worker is there."""


class Dispatcher:
    """One pass: take what is due, hand out free slots, say how long to sleep."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self._clean_at = time.monotonic()
        self._seen_at = time.monotonic()
        self._crowd_seen_at = time.monotonic()
        self._crowded = False
        self._uploads_start = False
        self._out_of_reach = False
        self._back_ms = 0
        """When Redis was last back after it had been out of reach (ms, by its clock)."""

    def announce(self) -> None:
        """Announce this worker's accounts with their limits, and log at which API they are."""
        self._container.presence.announce()
        settings = self._container.settings
        log.info(
            "dispatcher_started",
            api=settings.segmind_base_url,
            paid=not settings.segmind_is_loopback,
            accounts=sorted(settings.accounts),
        )

    def step(self) -> float:
        """Start everything that can start now; returns the seconds until there may be more.

        Raises:
            RedisError, OperationalError: the store or the broker is out of reach.
        """
        with self._noticing():
            return self._step()

    def sleep(self, seconds: float) -> None:
        """Sleep for ``seconds``, or until somebody is wanted."""
        with self._noticing():
            self._container.deadlines.wait_for_work(seconds)

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        """Remember that Redis was out of reach: it was for all workers, so none could renew a lease."""
        try:
            yield
        except RedisError:
            self._out_of_reach = True
            raise

    def _step(self) -> float:
        if self._out_of_reach:
            self._back_ms, self._out_of_reach = self._container.deadlines.now_ms(), False
        if time.monotonic() >= self._clean_at:
            self._clean()  # first: it works where a full server refuses all else, and makes room there
        if time.monotonic() >= self._seen_at:
            self._container.presence.announce()
            self._seen_at = time.monotonic() + SEEN_EVERY
        waits = [loops.LONGEST_SLEEP, self._start_due()]
        names = self._container.accounts.names()
        if self._container.settings.accounts.keys() - set(names):  # Redis may have come back without its data
            self._container.presence.announce()
        for account in names:
            prepare = not self._transfers_are_crowded()
            waits.append(self._hand_out(self._container.budget, account, CALL, prepare=prepare))
            waits.append(self._hand_out(self._container.transfers, transfers_of(account), CONTINUE, prepare=True))
        return min(waits)

    def _clean(self) -> None:
        self._clean_at = time.monotonic() + CLEAN_EVERY
        gone = self._container.retention.forget_finished()
        parts = 0
        try:
            parts = self._container.work_folder.clean()
        except (WorkFolderError, OSError) as error:
            log.warning("work_folder_not_cleaned", error=str(error))
        if gone or parts:
            log.info("cleaned_up", jobs=gone, parts=parts)

    def _start_due(self) -> float:
        due, wait = self._container.deadlines.due(BATCH, self._container.settings.finetune_handover)
        jobs = self._container.jobs.get_many(list(due))
        left = self._still_queued(jobs, due) | self._still_parked(jobs)
        for job in jobs:
            if job.id in left:
                continue
            with structlog.contextvars.bound_contextvars(job_id=job.id, account=job.account):
                try:
                    self._resume(job)
                except ConflictError:
                    log.info("deadline_overtaken")  # its worker lives and moved it
                else:
                    if self._lost_its_worker(job):
                        self._container.counters.add(TAKEOVERS)
        return next_in(wait, more=len(due) == BATCH)

    def _still_queued(self, jobs: list[JobRecord], due: dict[str, int]) -> set[str]:
        """Return the jobs whose message was not picked up, but need not be lost, since its queue is long. They are put
        off until their turn should have come.

        To send their messages again would make the queue longer: after a burst of some thousand jobs it would grow
        faster than the workers empty it.
        """
        handover, now = self._container.settings.finetune_handover, datetime.now(UTC)
        waited = {job.id: (due[job.id] - job.updated_ms) / 1000 for job in jobs}
        sent = [
            job
            for job in jobs
            if not job.owner
            and job.waiting_for is None
            and job.state is not JobState.NEEDS_ATTENTION
            and waited[job.id] >= handover
            and not job.request.expired(now)
        ]
        if not sent:
            return set()
        queued = {queue: self._container.messenger.queued(queue) for queue in (QUEUE, TRANSFER_QUEUE)}
        patience = {queue: handover + PATIENCE * length for queue, length in queued.items()}
        turns = [(job, until_deadline(job, patience[_queue_of(job)] - waited[job.id])) for job in sent]
        late = [(job, seconds) for job, seconds in turns if seconds > 0.0]
        if late:
            self._container.deadlines.put_off(late)
            log.info("queues_are_long", queued=queued, late=len(late))
        if len(late) < len(sent):
            self._container.counters.add(LOST_MESSAGES, by=len(sent) - len(late))
        return {job.id for job, _ in late}

    def _still_parked(self, jobs: list[JobRecord]) -> set[str]:
        """Return the jobs that still wait in a room, and put them off again.

        If they were started, each would only park once more, and thousands that wait for a day's cap would fill the
        queue that other accounts share, every hour.
        """
        waits = [
            (job, until_deadline(job, PARKED))
            for job in jobs
            if job.waiting_for is not None and not job.owner and not job.cancel_requested
        ]
        return self._container.deadlines.put_off_parked([(job, delay) for job, delay in waits if delay > 0.0])

    def _resume(self, job: JobRecord) -> None:
        container = self._container
        if job.settled:
            return  # it ended since its deadline was taken
        fields: dict[str, Any] = {"owner": ""}
        takeovers = 0
        if job.owner:
            lost = self._lost_its_worker(job)
            takeovers = fields["takeovers"] = job.takeovers + lost
            log.warning(
                "lease_expired",
                state=str(job.state),
                owner=job.owner,
                takeovers=takeovers,
                redis_was_away=not lost,
            )
        if job.cancel_requested and not job.state.terminal:
            # The cancel came while a worker held the job, and that worker died, or left the job to a person.
            fields |= {**RELEASED, "error": None}
            container.count_ended(container.jobs.transition(job, Change(), to=JobState.CANCELLED, **fields))
            return
        if takeovers >= container.settings.finetune_max_attempts:
            self._set_aside(job, takeovers)
            return
        if job.state is JobState.NEEDS_ATTENTION:
            container.jobs.transition(job, Change(delay=container.settings.finetune_training_limit), **fields)
            return
        fields["waiting_for"] = None
        # A registered job whose message was lost is started here.
        to = JobState.UPLOADING if job.state is JobState.ACCEPTED else None
        change = Change(delay=container.settings.finetune_handover)
        priority = _priority_of(job)
        self._start(container.jobs.transition(job, change, to=to, **fields), priority)

    def _lost_its_worker(self, job: JobRecord) -> bool:
        """Tell whether the job's worker has died or stood still. If its last sign of life is from before the end of an
        outage, it may just not have reached Redis."""
        return bool(job.owner) and job.updated_ms >= self._back_ms

    def _set_aside(self, job: JobRecord, takeovers: int) -> None:
        """End a job that takes its workers down with it, so that it cannot end all of them."""
        doing = ACCESS if job.wants_access else str(job.stage)
        error = JobError(
            code="worker_lost",
            stage=doing,
            message=f"{takeovers} workers died or stalled while running the {doing} stage, and none got further.",
            action="Find out what ended them (memory, node, SIGKILL) at the times of lease_expired in the logs; then "
            f"{again(doing)}.",
        )
        log.error("job_set_aside", stage=doing, takeovers=takeovers)
        if job.access is not None and job.wants_access:
            end_change(self._container, job, job.access.refused(error))
        elif job.tracked and job.finetune_id is None:
            # A submit may have been charged: the sweeps go on looking for it, and a person sees that.
            leave_to_a_person(self._container, job, error.message, takeovers=takeovers, error=error)
        else:
            fields = {**RELEASED, "takeovers": takeovers, "failed_stage": job.stage, "error": error}
            self._container.count_ended(self._container.jobs.transition(job, Change(), to=JobState.FAILED, **fields))

    def _hand_out(self, budget: Budget, account: str, priority: int, *, prepare: bool) -> float:
        holders, wait = budget.reserve(account, BATCH, prepare=prepare)
        ids = [holder for holder in holders if holder != SWEEP]
        if len(ids) < len(holders):
            self._container.messenger.sweep(account)
        for job in self._container.jobs.get_many(ids):
            if not job.settled:
                self._start(job, priority)
                self._uploads_start |= job.stage is Stage.UPLOAD
        return next_in(wait, more=len(holders) == BATCH)

    def _transfers_are_crowded(self) -> bool:
        if self._uploads_start and time.monotonic() >= self._crowd_seen_at:
            # Transfers of new jobs do not count: an upload that has its URL goes before them.
            self._crowded = self._container.messenger.queued_before(TRANSFER_QUEUE, CONTINUE) > CROWDED
            # With room, the next count is due only once another upload was started.
            self._uploads_start = self._crowded
            self._crowd_seen_at = time.monotonic() + CROWD_SEEN_EVERY
        return self._crowded

    def _start(self, job: JobRecord, priority: int) -> None:
        if job.wants_access:
            self._container.messenger.access(job.id, priority=priority)
            return
        log.debug("chain_started", job_id=job.id, stage=str(job.stage))
        self._container.messenger.start(job.id, job.stage.and_after(), priority=priority)


def _priority_of(job: JobRecord) -> int:
    """Return the priority of the message with which a job that was due goes on."""
    if job.request.expired(datetime.now(UTC)):
        return CALL  # it only ends, at the time that its caller set
    tried = job.waiting_for is WaitReason.BACKOFF and job.error is not None
    if job.stage is Stage.UPLOAD and tried and job.dataset_report is None:
        return ACCEPT  # it has got nowhere yet: a batch whose dataset host is away must not go before new jobs
    if job.waiting_for is WaitReason.START:
        return BEGIN  # it is as new as one that starts at once
    return CONTINUE


def _queue_of(job: JobRecord) -> str:
    """Return the queue in which the job's message waits, if it was sent and not picked up."""
    return QUEUE if job.state is JobState.ACCEPTED else stage_queue(job.stage)


class DispatcherStep(LoopStep):
    """Runs the dispatcher."""

    loop = Loop.DISPATCHER

    def rounds(self, container: Container) -> Dispatcher:
        """Return the dispatcher."""
        return Dispatcher(container)
