"""This worker's presence: others see it while it gives signs of life, and its settings set limits for all."""

import hashlib
import math
import time
from dataclasses import asdict
from functools import reduce

import structlog

from finetune_queue import __version__
from finetune_queue.settings import Settings
from finetune_queue.store import AccountLimits, Accounts, LiveWorker, RedisError, Workers, limits_by_worker
from finetune_queue.store.workers import GONE

log = structlog.get_logger(__name__)

_LOST = "all jobs, and which trainings they have paid for"
_AFTER_LOSS = (
    "if there is a copy of its data, stop this worker and bring it back; else find the trainings at Segmind before "
    "anything is submitted again (docs/runbook.md, FinetuneRedisEmptied)"
)


class Presence:
    """Announces this worker, and takes it off when it stops."""

    def __init__(self, settings: Settings, name: str, workers: Workers, accounts: Accounts) -> None:
        self._settings = settings
        self._name = name
        self._workers = workers
        self._accounts = accounts
        self._clock_off = 0
        self._node = ""
        self._announced_at = -math.inf
        self._announced_since = -math.inf
        self._data_id = ""

    @property
    def me(self) -> LiveWorker:
        """This worker as it shows itself to others."""
        accounts = tuple(sorted(self._settings.accounts))
        lasts = self._settings.finetune_training_limit
        limits = tuple((name, AccountLimits.of(self._settings.accounts[name], lasts)) for name in accounts)
        prints = tuple((name, self._key_print(name)) for name in accounts)
        return LiveWorker(self._name, __version__, accounts, self._clock_off, limits, prints, self._node)

    def _key_print(self, account: str) -> str:
        # Too short to test guessed keys by: it shows that two keys differ, and no more.
        key = self._settings.accounts[account].api_key.get_secret_value()
        return hashlib.sha256(f"finetune-queue {self._settings.segmind_base_url} {key}".encode()).hexdigest()[:6]

    def known_as(self, node: str) -> None:
        """Set the name that Celery has for this worker, before it is first announced."""
        self._node = node

    def clock_was_off(self, seconds: int) -> None:
        """Set by how many seconds this machine's clock is ahead of Redis', before the worker is first announced."""
        self._clock_off = seconds

    def announce(self) -> None:
        """Tell the other workers that this one is there, and set the limits of its accounts, which hold for all.

        The limits are the strictest of those in the settings of all workers, so one with old settings, or without caps,
        lifts nobody's. A worker that went without signing off still counts until this one has announced itself for
        ``GONE`` seconds without a break: after an outage of Redis, or a restart of all, it may only come back a little
        later.
        """
        now = time.monotonic()
        if now - self._announced_at > GONE:
            self._announced_since = now
        data_id = self._workers.seen(self.me, "sandbox" if self._settings.segmind_is_loopback else "paid")
        self._announced_at = now
        if self._data_id not in {"", data_id}:
            log.error("redis_came_back_empty", lost=_LOST, next=_AFTER_LOSS)
            self._workers.note_emptied()
        self._data_id = data_id
        if now - self._announced_since >= GONE:
            self._workers.forget_gone()
        self._set_limits()

    def _set_limits(self) -> None:
        """Set the limits of this worker's accounts by the settings of all workers that count. Looks again after each
        change: of two workers that come or go at once, the last to write has seen both."""
        changed = True
        while changed:
            workers, changed = self._workers.not_forgotten(), False
            for name, own in self.me.limits:
                of_workers = limits_by_worker(name, workers).values()
                if not of_workers:
                    continue  # after the sign-off of the last worker that has the account
                limits = reduce(AccountLimits.strictest, of_workers)
                if self._accounts.configure(name, limits):
                    log.info("account_limits_set", account=name, in_force=asdict(limits), these_settings=asdict(own))
                    changed = True

    def sign_off(self) -> None:
        """Tell the other workers that this one is gone. Without Redis it counts as gone a little later."""
        try:
            self._workers.left(self.me)
            self._set_limits()  # if its settings were the strictest, those of the others are in force from now on
        except RedisError as error:
            log.warning("sign_off_failed", error=str(error))
