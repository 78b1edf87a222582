"""The composition root: everything a worker process is made of, built once from the settings."""

import os
import socket
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit

import structlog
from celery import Celery

from finetune_queue.contract import JobRecord
from finetune_queue.messaging import Messenger
from finetune_queue.settings import Settings
from finetune_queue.storage import Place
from finetune_queue.store import (
    API_CALL_SECONDS,
    API_CALLS,
    JOB_SECONDS,
    Accounts,
    Budget,
    Counters,
    Deadlines,
    JobStore,
    LocalQueues,
    Outbox,
    Rejections,
    Retention,
    SweepClock,
    Workers,
    connect,
)
from finetune_worker.presence import Presence
from finetune_worker.pulse import Pulse
from finetune_worker.segmind.call import EndedCall
from finetune_worker.segmind.client import SegmindClient
from finetune_worker.sinks import Senders
from finetune_worker.transfer.limits import TransferLimits
from finetune_worker.work_folder import WorkFolder

log = structlog.get_logger(__name__)

SILENT_CALLS = 4
"""How many calls in a row a stage may make to a store or a public server without renewing its lease: to open an object
takes four, and no other step more. None of them lasts longer than a lease (`finetune_queue.storage.drivers`)."""


class UnknownAccountKeyError(Exception):
    """A job names an account that this worker has no key for."""


@dataclass(eq=False)
class Container:
    """What stages and the dispatcher work with. Safe in threads; not to be taken across a fork."""

    settings: Settings
    name: str
    jobs: JobStore
    deadlines: Deadlines
    accounts: Accounts
    sweep_clock: SweepClock
    budget: Budget
    transfers: Budget
    messenger: Messenger
    outbox: Outbox
    rejections: Rejections
    retention: Retention
    counters: Counters
    workers: Workers
    presence: Presence
    sinks: Senders
    artifacts: Place
    work_folder: WorkFolder
    pulse: Pulse = field(default_factory=Pulse)
    _clients: dict[str, SegmindClient] = field(default_factory=dict)
    _stop_at: float | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def build(cls, settings: Settings, app: Celery) -> Self:
        """Build everything from the settings. Connects to nothing yet."""
        settings.require_worker()
        client = connect(settings.finetune_redis_url)
        jobs = JobStore(client, replicas=settings.finetune_redis_replicas)
        outbox = Outbox(client)
        accounts, workers = Accounts(client), Workers(client)
        name = f"{socket.gethostname()}:{os.getpid()}"
        return cls(
            settings=settings,
            name=name,
            jobs=jobs,
            deadlines=Deadlines(client),
            accounts=accounts,
            sweep_clock=SweepClock(client),
            budget=Budget.of_calls(client, settings),
            transfers=Budget.of_transfers(client, settings),
            messenger=Messenger(app),
            outbox=outbox,
            rejections=Rejections(client, outbox),
            retention=Retention(client, settings.finetune_retention),
            counters=Counters(client),
            workers=workers,
            presence=Presence(settings, name, workers, accounts),
            sinks=Senders(settings, app, LocalQueues(client)),
            artifacts=Place(settings.finetune_artifact_url),
            work_folder=WorkFolder(settings.finetune_redis_url, jobs),
        )

    def stop_soon(self) -> None:
        """Give running stages the shutdown time-out from now on; a stage that reports progress after it parks its
        job."""
        if self._stop_at is None:
            self._stop_at = time.monotonic() + self.settings.finetune_shutdown_timeout

    @property
    def stopping(self) -> bool:
        """Whether the worker was told to stop."""
        return self._stop_at is not None

    def out_of_time(self) -> bool:
        """Tell whether the worker is being stopped and its running stages have had their time."""
        return self._stop_at is not None and time.monotonic() >= self._stop_at

    def segmind(self, account: str) -> SegmindClient:
        """Return the account's API client, one connection pool for the process.

        Raises:
            UnknownAccountKeyError: the settings have no such account.
        """
        with self._lock:
            if account not in self._clients:
                configured = self.settings.accounts.get(account)
                if configured is None:
                    known = ", ".join(sorted(self.settings.accounts))
                    message = f"The account '{account}' is not configured on this worker (known: {known})."
                    raise UnknownAccountKeyError(message)
                self._clients[account] = SegmindClient(
                    self.settings.segmind_base_url,
                    configured.api_key,
                    connect_timeout=self.settings.segmind_connect_timeout,
                    read_timeout=self.settings.segmind_read_timeout,
                    call_timeout=self.settings.segmind_call_timeout,
                    on_call=partial(self._count_call, account),
                )
            return self._clients[account]

    def _count_call(self, account: str, call: EndedCall) -> None:
        self.counters.add(API_CALLS, account, call.operation, call.result)
        self.counters.observe(API_CALL_SECONDS, call.operation, seconds=call.seconds)

    def sign_off(self) -> None:
        """Send what is still to be counted, and tell the other workers that this one is gone."""
        self.counters.send()
        self.presence.sign_off()

    def count_ended(self, job: JobRecord) -> None:
        """Count how long a job took that has just ended."""
        self.counters.observe(JOB_SECONDS, job.state, seconds=(job.entered_ms - job.created_ms) / 1000)

    @property
    def dataset_roots(self) -> list[Path]:
        """The folders that ``file://`` datasets may lie under: those of the settings, and the staging store."""
        url = self.settings.finetune_staging_url
        staging = [Path(unquote(urlsplit(Place(url).url).path))] if url.startswith("file:") else []
        return [*self.settings.finetune_dataset_roots, *staging]

    @property
    def transfer_limits(self) -> TransferLimits:
        """The bounds of one upload or download: one that stalls, or whose host does not answer, ends before the job's
        lease."""
        lease = self.settings.finetune_lease
        return TransferLimits(
            connect_timeout=min(self.settings.segmind_connect_timeout, lease / 6), stall_timeout=lease / 2
        )

    @property
    def store_silence(self) -> float:
        """Seconds for which a stage must hold its job before it asks a store, or a public server, for something. If the
        store is slow, a lease would not last: one worker after the other would lose the job to the next."""
        return SILENT_CALLS * self.settings.finetune_lease

    def close(self) -> None:
        """Sign off, and close the API connections."""
        self.sign_off()
        with self._lock:
            for client in self._clients.values():
                client.close()
            self._clients.clear()
