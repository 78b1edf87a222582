"""An event as an HTTP POST, signed by Standard Webhooks (https://www.standardwebhooks.com, 1.0.0)."""

from collections.abc import Sequence
from datetime import UTC, datetime

from standardwebhooks import Webhook

from finetune_queue.contract import Event, Sink
from finetune_queue.public_fetch.addresses import AddressPolicy
from finetune_queue.public_fetch.errors import FetchError
from finetune_queue.public_fetch.guard import opened
from finetune_worker.sinks.errors import DeliveryError, never_connected
from finetune_worker.sinks.trace import trace_headers
from finetune_worker.wire.headers import retry_after

CONTENT_TYPE = "application/cloudevents+json; charset=utf-8"
"""CloudEvents' HTTP binding, structured mode."""

_BUSY = frozenset({429, 502, 503, 504})
_GONE = 410

# Our own words: those of the error name the URL, and its path may be a secret.
_WHY = {
    "timed_out": "gave no answer in time",
    "tls_failed": "serves no https there, or has no valid certificate",
    "address_refused": "does not lead to an address that may be reached",
    "bad_url": "has a URL that cannot be used",
}
_DOWN = frozenset({"timed_out", "unreachable", "tls_failed"})


def post(sink: Sink, event: Event, text: str, *, secrets: Sequence[str], policy: AddressPolicy, seconds: float) -> int:
    """Send the event; returns the status of the answer, which is 2xx.

    Raises:
        DeliveryError: it was not taken, or nobody knows.
    """
    headers = {"Content-Type": CONTENT_TYPE, **trace_headers(event), **signature(event.id, text, secrets)}
    try:
        with opened("POST", sink.target, policy, seconds=seconds, headers=headers, body=text.encode(), redirects=0) as (
            response,
            _,
        ):
            status, wait = response.status_code, retry_after(response.headers)
    except FetchError as error:
        unconnected = never_connected(error)
        why = _WHY.get(error.code, "cannot be reached" if unconnected else "broke the connection off without an answer")
        down = error.code in _DOWN
        raise DeliveryError(f"{sink.shown} {why}", unreachable=down, whole_origin=down and unconnected) from error
    if 200 <= status < 300:
        return status
    redirect = " a redirect, which is not followed," if 300 <= status < 400 else ""
    raise DeliveryError(
        f"{sink.shown} answered with{redirect} status {status}",
        status=status,
        unreachable=status in _BUSY,
        gone=status == _GONE,
        after=wait if status in _BUSY else None,
    )


def signature(message_id: str, body: str, secrets: Sequence[str]) -> dict[str, str]:
    """Return the headers that prove where the message is from and when it was sent; each secret signs."""
    now = datetime.now(UTC)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(Webhook(secret).sign(message_id, now, body) for secret in secrets),
    }
