"""The sandbox's state and its parts: what the endpoints in api, storage and control work on."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from segmind_sandbox.datasets import DatasetError, DatasetReader
from segmind_sandbox.faults import FaultBook
from segmind_sandbox.models import Submit
from segmind_sandbox.objects import ObjectStore
from segmind_sandbox.ratelimit import RateLimiter, make_limiter
from segmind_sandbox.report import CallLog
from segmind_sandbox.settings import RateLimit, SandboxSettings
from segmind_sandbox.signing import Signer
from segmind_sandbox.trainings import FAILED, Training, TrainingBook
from segmind_sandbox.webhooks import FINETUNE, Webhooks
from segmind_sandbox.weights import Digests, weights

_EAGER_BYTES = 64 << 20  # weights from this size are hashed while they "train", so that the first read need not wait


@dataclass
class Account:
    """What one API key stands for. ``name`` is safe to show; the key is not."""

    name: str
    user_id: str
    limit: RateLimit
    limiter: RateLimiter
    credits: float


class Sandbox:
    """One emulated Segmind. Everything happens in one event loop, so nothing here needs a lock."""

    def __init__(self, settings: SandboxSettings) -> None:
        self.settings = settings.model_copy()
        self._start_settings = settings
        self.clock = time.monotonic
        self.signer = Signer()
        self.accounts = self._make_accounts()
        self.faults = FaultBook(settings.faults, settings.seed)
        self.log = CallLog()

    async def start(self) -> None:
        """Start what needs the event loop or the disk."""
        self.objects = ObjectStore()
        self.trainings = TrainingBook(self.clock, self._status_reached)
        self.webhooks = Webhooks(self.settings.webhook_timeout)
        self.datasets = DatasetReader(self.objects)
        self._closing = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._digests: dict[tuple[str, int], asyncio.Task[Digests]] = {}
        self._register_webhooks()
        self._scheduler = asyncio.create_task(self.trainings.run())

    async def stop(self) -> None:
        """End all tasks and remove the uploaded files."""
        self.close_waits()
        self._scheduler.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._scheduler
        await self._cancel_tasks()
        await self.webhooks.close()
        await self.datasets.close()
        self.objects.close()

    def close_waits(self) -> None:
        """End the waits of slow and stall faults, and so give up their calls: at a reset and at the end."""
        self._closing.set()
        self._closing = asyncio.Event()

    async def pause(self, seconds: float) -> bool:
        """Wait ``seconds`` and return True; False, for the call to be given up, if the end or a reset comes first."""
        try:
            await asyncio.wait_for(self._closing.wait(), seconds)
        except TimeoutError:
            return True
        return False

    def _make_accounts(self) -> dict[str, Account]:
        accounts = {}
        for number, (key, rate) in enumerate(self.settings.api_keys.items(), start=1):
            limit = RateLimit.parse(rate or self.settings.rate_limit)
            accounts[key] = Account(
                name=f"account-{number}",
                user_id=str(uuid.uuid5(uuid.NAMESPACE_OID, key)),
                limit=limit,
                limiter=make_limiter(self.settings.rate_algorithm, limit),
                credits=self.settings.credits,
            )
        return accounts

    def _register_webhooks(self) -> None:
        if self.settings.webhook_url is not None:
            for account in self.accounts.values():
                self.webhooks.add(account.name, self.settings.webhook_url, [FINETUNE])

    def restart_limits(self) -> None:
        """Begin all accounts' windows anew, with the rates set now."""
        for key, fresh in self._make_accounts().items():
            self.accounts[key].limit, self.accounts[key].limiter = fresh.limit, fresh.limiter

    def refill(self) -> None:
        """Give all accounts the credits set now."""
        for account in self.accounts.values():
            account.credits = self.settings.credits

    def restart_report(self) -> None:
        """Forget what was seen."""
        self.log = CallLog()
        self.faults.fired = Counter()

    async def reset(self) -> None:
        """Go back to the state at start: settings, faults, jobs, objects, limits, webhooks, report."""
        self.close_waits()
        await self._cancel_tasks()
        self.settings = self._start_settings.model_copy()
        self.faults = FaultBook(self.settings.faults, self.settings.seed)
        self.trainings.clear()
        self.datasets.forget()
        self.objects.clear()
        self._digests.clear()
        self.webhooks.clear()
        self.restart_limits()
        self.refill()
        self.restart_report()
        self._register_webhooks()

    async def _cancel_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def submit(self, account: Account, request: Submit, base_url: str) -> Training:
        """Take a paid job and start it."""
        now = self.clock()
        training = Training(
            account=account.name,
            request=request,
            base_url=base_url,
            created=now,
            training_seconds=self.settings.training_seconds,
            deploy_seconds=self.settings.deploy_seconds,
            weights_bytes=self.settings.weights_bytes,
            list_url=self.settings.list_carries_weights_url,
            private_weights=self.settings.private_weights or request.base_model != "FAST_FLUX",
            visible_at=now + self.settings.list_lag_seconds,
        )
        for fate in self.faults.draw("training", f"{request.name} {request.data_source_path}"):
            training.apply(fate)
        # What is left is what the account is told, so that rounding does not make the last submit too dear.
        account.credits = round(account.credits - self.settings.training_cost, 10)
        self.trainings.add(training)
        self.log.submitted(request.name, request.data_source_path)
        self._spawn(self._begin(training))
        return training

    async def _begin(self, training: Training) -> None:
        request = training.request
        try:
            await self.datasets.check(request.data_source_path, public_only=request.base_model == "FAST_FLUX")
        except DatasetError as error:
            training.fail(str(error), self.clock())
            return
        training.dataset_was_read(self.clock())
        self.trainings.schedule(training)
        if training.weights_bytes >= _EAGER_BYTES:
            await self.digests(training)

    async def digests(self, training: Training) -> Digests:
        """The hashes of a job's weights; made once, in a thread."""
        version = (training.model_id, training.weights_version)
        if version not in self._digests:
            file = weights(*version, training.weights_bytes)
            self._digests[version] = self._spawn(asyncio.to_thread(file.digests))
        return await asyncio.shield(self._digests[version])

    def _status_reached(self, training: Training, status: str) -> None:
        self.webhooks.tell(training.account, webhook_payload(training, status))

    def report(self, window: float | None) -> dict[str, Any]:
        """All that GET /_sandbox/report tells. ``window`` (seconds) replaces that of the accounts' limits."""
        now = self.clock()
        windows = {account.name: window or account.limit.seconds for account in self.accounts.values()}
        statuses = Counter(training.status(now) for training in self.trainings)
        return {
            **self.log.describe(windows),
            "faults": dict(+self.faults.fired),
            "trainings": {"total": statuses.total(), "failed": statuses[FAILED], "by_status": dict(statuses)},
            "objects": len(self.objects),
        }


def webhook_payload(training: Training, status: str) -> dict[str, Any]:
    """What a webhook is told of a job's status."""
    return {
        "event_type": FINETUNE,
        "status": status,
        "finetune_id": training.finetune_id,
        "name": training.request.name,
        "base_model": training.request.base_model,
        "trained_model_url": training.weights_url,
        "inference_api_url": training.inference_url if status == "AVAILABLE" else None,
        "error_message": None,
    }
