"""The composition root: everything a worker process is made of, built once from the settings."""

import hashlib
import math
import os
import socket
import threading
import time
from dataclasses import asdict, dataclass, field
from functools import partial, reduce
from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit

import structlog
from celery import Celery

from finetune_queue import __version__
from finetune_queue.contract import JobRecord
from finetune_queue.messaging import Messenger
from finetune_queue.settings import Settings
from finetune_queue.storage import Place
from finetune_queue.store import (
    API_CALL_SECONDS,
    API_CALLS,
    JOB_SECONDS,
    AccountLimits,
    Accounts,
    Budget,
    Counters,
    Deadlines,
    JobStore,
    LiveWorker,
    LocalQueues,
    Outbox,
    RedisError,
    Rejections,
    Retention,
    SweepClock,
    Workers,
    connect,
    limits_by_worker,
)
from finetune_queue.store.workers import GONE
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

_LOST = "all jobs, and which trainings they have paid for"
_AFTER_LOSS = (
    "if there is a copy of its data, stop this worker and bring it back; else find the trainings at Segmind before "
    "anything is submitted again (docs/runbook.md, FinetuneRedisEmptied)"
)


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
    sinks: Senders
    artifacts: Place
    work_folder: WorkFolder
    pulse: Pulse = field(default_factory=Pulse)
    _clients: dict[str, SegmindClient] = field(default_factory=dict)
    _stop_at: float | None = None
    _clock_off: int = 0
    _node: str = ""
    _announced_at: float = -math.inf
    _announced_since: float = -math.inf
    _data_id: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def build(cls, settings: Settings, app: Celery) -> Self:
        """Build everything from the settings. Connects to nothing yet."""
        settings.require_worker()
        client = connect(settings.finetune_redis_url)
        jobs = JobStore(client, replicas=settings.finetune_redis_replicas)
        outbox = Outbox(client)
        return cls(
            settings=settings,
            name=f"{socket.gethostname()}:{os.getpid()}",
            jobs=jobs,
            deadlines=Deadlines(client),
            accounts=Accounts(client),
            sweep_clock=SweepClock(client),
            budget=Budget.of_calls(client, settings),
            transfers=Budget.of_transfers(client, settings),
            messenger=Messenger(app),
            outbox=outbox,
            rejections=Rejections(client, outbox),
            retention=Retention(client, settings.finetune_retention),
            counters=Counters(client),
            workers=Workers(client),
            sinks=Senders(settings, app, LocalQueues(client)),
            artifacts=Place(settings.finetune_artifact_url),
            work_folder=WorkFolder(settings.finetune_redis_url, jobs),
        )

    @property
    def me(self) -> LiveWorker:
        """This worker as it shows itself to others."""
        accounts = tuple(sorted(self.settings.accounts))
        lasts = self.settings.finetune_training_limit
        limits = tuple((name, AccountLimits.of(self.settings.accounts[name], lasts)) for name in accounts)
        prints = tuple((name, self._key_print(name)) for name in accounts)
        return LiveWorker(self.name, __version__, accounts, self._clock_off, limits, prints, self._node)

    def _key_print(self, account: str) -> str:
        # Too short to test guessed keys by: it shows that two keys differ, and no more.
        key = self.settings.accounts[account].api_key.get_secret_value()
        return hashlib.sha256(f"finetune-queue {self.settings.segmind_base_url} {key}".encode()).hexdigest()[:6]

    def known_as(self, node: str) -> None:
        """Set the name that Celery has for this worker, before it is first announced."""
        self._node = node

    def clock_was_off(self, seconds: int) -> None:
        """Set by how many seconds this machine's clock is ahead of Redis', before the worker is first announced."""
        self._clock_off = seconds

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

    def announce_accounts(self) -> None:
        """Tell the other workers that this one is there, and set the limits of its accounts, which hold for all.
        The limits are the strictest of those in the settings of all workers, so one with old settings, or without caps,
        lifts nobody's. A worker that went without signing off still counts until this one has announced itself for
        ``GONE`` seconds without a break: after an outage of Redis, or a restart of all, it may only come back a little
        later.
        """
        now = time.monotonic()
        if now - self._announced_at > GONE:
            self._announced_since = now
        data_id = self.workers.seen(self.me, "sandbox" if self.settings.segmind_is_loopback else "paid")
        self._announced_at = now
        if self._data_id not in {"", data_id}:
            log.error("redis_came_back_empty", lost=_LOST, next=_AFTER_LOSS)
            self.workers.note_emptied()
        self._data_id = data_id
        if now - self._announced_since >= GONE:
            self.workers.forget_gone()
        self._set_limits()

    def _set_limits(self) -> None:
        """Set the limits of this worker's accounts by the settings of all workers that count. Looks again after each
        change: of two workers that come or go at once, the last to write has seen both."""
        changed = True
        while changed:
            workers, changed = self.workers.not_forgotten(), False
            for name, own in self.me.limits:
                of_workers = limits_by_worker(name, workers).values()
                if not of_workers:
                    continue  # after the sign-off of the last worker that has the account
                limits = reduce(AccountLimits.strictest, of_workers)
                if self.accounts.configure(name, limits):
                    log.info("account_limits_set", account=name, in_force=asdict(limits), these_settings=asdict(own))
                    changed = True

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
        """Send what is still to be counted, and say that this worker is gone."""
        self.counters.send()
        try:
            self.workers.left(self.me)
            self._set_limits()  # if its settings were the strictest, those of the others are in force from now on
        except RedisError as error:
            log.warning("sign_off_failed", error=str(error))  # it counts as gone all the same, a little later

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
