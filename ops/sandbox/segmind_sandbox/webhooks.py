"""Webhooks: registered as in the console or by the sibling webhook API, called on three status changes.

The payload and its signature are documented nowhere: the payload here holds the names that the page uses, and there
is no signature. A delivery is tried once, and does not wait for the one before it.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from segmind_sandbox.models import BadRequestError
from segmind_sandbox.outgoing import UNREACHABLE, make_client

FINETUNE = "FINETUNE"
_LOGGED = 1000  # deliveries kept for each webhook


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass(slots=True, eq=False)
class Webhook:
    """One registration."""

    account: str
    url: str
    types: list[str]
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    active: bool = True
    created_at: str = field(default_factory=_now)
    deliveries: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=_LOGGED))

    def describe(self) -> dict[str, Any]:
        """As /webhook/get shows it."""
        return {
            "webhook_id": self.id,
            "webhook_url": self.url,
            "event_types": self.types,
            "status": "active" if self.active else "inactive",
            "created_at": self.created_at,
        }


class Webhooks:
    """All registrations, and their deliveries."""

    def __init__(self, timeout: float) -> None:
        self._webhooks: dict[str, Webhook] = {}
        self._deliveries: set[asyncio.Task[None]] = set()
        self._client = make_client(timeout)

    def of_account(self, account: str) -> list[Webhook]:
        """An account's webhooks, inactive ones too."""
        return [webhook for webhook in self._webhooks.values() if webhook.account == account]

    def get(self, account: str, webhook_id: str) -> Webhook | None:
        """One webhook of an account."""
        webhook = self._webhooks.get(webhook_id)
        return webhook if webhook is not None and webhook.account == account else None

    def add(self, account: str, url: str, types: list[str]) -> Webhook:
        """Register a webhook. Raises BadRequestError if it would be the second for fine-tunes."""
        self._check_single(account, types, besides=None)
        webhook = Webhook(account, url, types)
        self._webhooks[webhook.id] = webhook
        return webhook

    def update(self, webhook: Webhook, url: str, types: list[str]) -> None:
        """Change a webhook and make it active. Raises BadRequestError as add does."""
        self._check_single(webhook.account, types, besides=webhook)
        webhook.url, webhook.types, webhook.active = url, types, True

    def _check_single(self, account: str, types: list[str], besides: Webhook | None) -> None:
        # "You can create only 1 webhook at a time for finetune jobs" (Fast Flux API, Webhooks).
        if FINETUNE in types and self._for_finetunes(account) not in {None, besides}:
            raise BadRequestError("only 1 webhook for finetune jobs is allowed; delete the old one first")

    def _for_finetunes(self, account: str) -> Webhook | None:
        active = (webhook for webhook in self.of_account(account) if webhook.active and FINETUNE in webhook.types)
        return next(active, None)

    def clear(self) -> None:
        """Forget all webhooks and give up deliveries that are under way."""
        self._webhooks.clear()
        for task in self._deliveries:
            task.cancel()

    async def close(self) -> None:
        """Give up deliveries that are under way and close the connections."""
        self.clear()
        await asyncio.gather(*self._deliveries, return_exceptions=True)
        await self._client.aclose()

    def tell(self, account: str, payload: dict[str, Any]) -> None:
        """Start a delivery to the account's webhook for fine-tunes, if it has one."""
        webhook = self._for_finetunes(account)
        if webhook is not None:
            self.send(webhook, payload)

    def send(self, webhook: Webhook, payload: dict[str, Any]) -> None:
        """Start one delivery."""
        task = asyncio.create_task(self._deliver(webhook, payload))
        self._deliveries.add(task)
        task.add_done_callback(self._deliveries.discard)

    async def _deliver(self, webhook: Webhook, payload: dict[str, Any]) -> None:
        started = time.monotonic()
        entry: dict[str, Any] = {"timestamp": _now(), "event_type": FINETUNE, "payload": payload}
        try:
            reply = await self._client.post(webhook.url, json=payload)
        except UNREACHABLE as error:
            entry |= {"status": "failed", "response_code": None, "error": type(error).__name__}
        else:
            entry |= {"status": "delivered" if reply.is_success else "failed", "response_code": reply.status_code}
        entry["response_time_ms"] = round((time.monotonic() - started) * 1000)
        webhook.deliveries.append(entry)
