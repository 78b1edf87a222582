"""The overview of the whole queue, read once for all that ask for it at about the same time."""

import threading
import time
from datetime import UTC, datetime

from finetune_queue.contract import JobRecord
from finetune_queue.errors import QueueUnavailableError
from finetune_queue.gateway.models import AccountView, InLine, JobCard, OverviewReply, SinkView, StateColumn
from finetune_queue.messaging import Messenger
from finetune_queue.store import Accounts, AccountStatus, JobStore, Overview, SinkLines, Workers, accounts_in_use

JOBS_PER_STATE = 20
IN_LINE = 10

FRESH = 0.3
"""Seconds that a look is reused, so that many viewers cost the store no more than one. The page waits longer than this
after an event before it asks."""


class Looks:
    """Reads the overview, in one thread at a time, and keeps the latest."""

    def __init__(
        self,
        jobs: JobStore,
        accounts: Accounts,
        workers: Workers,
        overview: Overview,
        sinks: SinkLines,
        *,
        messenger: Messenger,
    ) -> None:
        self._jobs = jobs
        self._accounts = accounts
        self._workers = workers
        self._overview = overview
        self._sinks = sinks
        self._messenger = messenger
        self._lock = threading.Lock()
        self._latest: tuple[float, OverviewReply] | None = None

    def get(self) -> OverviewReply:
        """Return the overview, at most :data:`FRESH` seconds old."""
        with self._lock:
            if self._latest is None or time.monotonic() - self._latest[0] > FRESH:
                look = self._look()
                # Fresh from its end on: a silent broker makes a look slow, and those that waited for it get it, too.
                self._latest = (time.monotonic(), look)
            return self._latest[1]

    def _look(self) -> OverviewReply:
        look = self._overview.look(JOBS_PER_STATE)
        ids = [job_id for view in look.states for job_id in view.job_ids]
        records = {record.id: record for record in self._jobs.get_many(ids)}
        states = [
            StateColumn(
                state=view.state,
                count=view.count,
                oldest_seconds=view.oldest,
                jobs=[_card(records[job_id], look.at_ms) for job_id in view.job_ids if job_id in records],
            )
            for view in look.states
        ]
        try:
            queues = self._messenger.lengths()
        except QueueUnavailableError:
            queues = {}
        return OverviewReply(
            at=datetime.fromtimestamp(look.at_ms / 1000, tz=UTC),
            states=states,
            accounts=[self._account(status) for status in accounts_in_use(self._accounts, self._workers.alive())],
            sinks=[
                SinkView(
                    sink=each.sink,
                    trouble_seconds=max(0.0, (look.at_ms - each.since_ms) / 1000),
                    waiting=each.waiting,
                    reason=each.reason,
                    refused_job=each.refused_job,
                )
                for each in self._sinks.troubles()
            ],
            queues=queues,
            dead_letters=look.dead_letters,
            overdue_seconds=look.overdue,
        )

    def _account(self, status: AccountStatus) -> AccountView:
        line = self._jobs.get_many(self._overview.first_in_room(status.name, IN_LINE))
        return AccountView(
            name=status.name,
            calls=status.limits.calls,
            window_seconds=status.limits.window,
            used=status.used,
            waiting=status.waiting,
            trainings=status.in_flight,
            max_training=status.limits.max_training,
            submits_today=status.spent_today,
            max_submits_per_day=status.limits.max_submits_per_day,
            stopped=status.stopped,
            paused_seconds=status.paused_for or status.tested_for,
            submits_paused_seconds=status.submits_paused_for or status.submits_tested_for,
            pause_reason=status.pause_reason,
            line=[
                InLine(job_id=job.id, what="access" if job.wants_access else job.stage, name=job.request.name)
                for job in line
            ],
        )


def _card(job: JobRecord, now_ms: float) -> JobCard:
    return JobCard(
        job_id=job.id,
        name=job.request.name,
        account=job.account,
        state=job.state,
        created_at=datetime.fromtimestamp(job.created_ms / 1000, tz=UTC),
        seconds_in_state=max(0.0, (now_ms - job.entered_ms) / 1000),
        waiting_for=job.waiting_for,
        provider_status=job.provider_status,
        progress=job.progress,
        error=None if job.error is None else job.error.message,
    )
