"""The sibling webhook API, as the official SDK 1.3.0 uses it."""

from __future__ import annotations

from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from segmind_sandbox import models
from segmind_sandbox.api import Call, Operation, RefusedError
from segmind_sandbox.sandbox import Sandbox
from segmind_sandbox.webhooks import Webhook


async def get(call: Call) -> Response:
    """All webhooks of the account."""
    webhooks = call.sandbox.webhooks.of_account(call.account.name)
    return JSONResponse({"webhooks": [webhook.describe() for webhook in webhooks]})


async def add(call: Call) -> Response:
    """Register a webhook; one at a time for fine-tunes."""
    body = models.parse(models.WebhookAdd, await call.json())
    webhook = call.sandbox.webhooks.add(call.account.name, body.webhook_url, body.event.types)
    return _success(webhook, "Webhook added successfully")


async def update(call: Call) -> Response:
    """Change a webhook's URL and events."""
    body = models.parse(models.WebhookUpdate, await call.json())
    webhook = _own_webhook(call, body.webhook_id)
    call.sandbox.webhooks.update(webhook, body.webhook_url, body.event.types)
    return _success(webhook, "Webhook updated successfully")


async def inactive(call: Call) -> Response:
    """Delete a webhook, that is mark it inactive."""
    webhook = _own_webhook(call, models.parse(models.WebhookId, call.query()).webhook_id)
    webhook.active = False
    return _success(webhook, "Webhook marked as inactive")


async def dispatch_logs(call: Call) -> Response:
    """The deliveries of a webhook, newest first."""
    webhook = _own_webhook(call, models.parse(models.WebhookId, call.query()).webhook_id)
    return JSONResponse({"webhook_id": webhook.id, "logs": list(reversed(webhook.deliveries))})


def _own_webhook(call: Call, webhook_id: str) -> Webhook:
    webhook = call.sandbox.webhooks.get(call.account.name, webhook_id)
    if webhook is None:
        raise RefusedError(404, "Webhook not found")
    return webhook


def _success(webhook: Webhook, message: str) -> Response:
    return JSONResponse({"status": "success", "webhook_id": webhook.id, "message": message})


def routes(sandbox: Sandbox) -> list[BaseRoute]:
    """The routes of these operations."""
    return [
        Route("/webhook/get", Operation(sandbox, "webhook_get", "GET", get)),
        Route("/webhook/add", Operation(sandbox, "webhook_add", "POST", add)),
        Route("/webhook/update", Operation(sandbox, "webhook_update", "POST", update)),
        Route("/webhook/inactive", Operation(sandbox, "webhook_inactive", "GET", inactive)),
        Route("/webhook/dispatch-logs", Operation(sandbox, "webhook_logs", "GET", dispatch_logs)),
    ]
