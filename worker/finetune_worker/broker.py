"""What this worker needs of kombu 5.7's Redis transport and has to take from inside it: whether it still waits for
messages, and three patches."""

import time
from typing import Any

import structlog
from kombu.transport import redis as transport
from kombu.transport.redis import Channel, Transport
from kombu.utils.json import loads

from finetune_queue.messaging import QUEUE, TRANSFER_QUEUE, patch_channels
from finetune_worker.envelope import well_formed, wrapped

log = structlog.get_logger(__name__)

_create_client = Channel._create_client  # type: ignore[attr-defined]
_deliver = Transport._deliver

_STUMBLES = (AttributeError, LookupError, TypeError, ValueError, RecursionError)
"""What kombu and Celery raise over a message that nobody foresaw; not what means a lost connection, or a stop."""


OVERDUE = 5.0
"""Seconds after which a BRPOP that the server should have ended by itself counts as unanswered."""


def fetches(consumer: Any) -> bool:
    """Tell whether the broker answers when a worker's consumer waits for messages.

    So it counts as well if the consumer has no reason to wait: all its threads are busy, or it was told to take from no
    queue.
    """
    if consumer is None or consumer.connection is None or consumer.task_consumer is None:
        return False
    channel = consumer.task_consumer.channel
    if not channel.active_queues or not channel.qos.can_consume():
        return True
    sent = channel._brpop_sent_at
    return sent is not None and time.monotonic() - sent < channel.brpop_timeout + OVERDUE


def patch_kombu() -> None:
    """Patch kombu's channels in this process: one that lost its connection says so (:func:`patch_channels`), a message
    that is none is set aside (:mod:`finetune_worker.envelope`), and each keeps its Redis client.

    kombu makes a client for every message that it sends or acknowledges, and for every task event: a tenth of the CPU
    of a busy worker went into making them. A client holds nothing but its pool of connections, so one will do for as
    long as the channel has the same pool.
    """
    patch_channels()
    Channel._create_client = _kept_client  # type: ignore[attr-defined]
    Transport._deliver = _deliver_well_formed  # type: ignore[assignment, method-assign]
    transport.loads = _loads_or_keeps  # type: ignore[attr-defined]


def _kept_client(self: Any, asynchronous: bool = False) -> Any:  # noqa: FBT001, FBT002 - kombu's signature
    if asynchronous:
        return _create_client(self, asynchronous=True)
    kept = vars(self).get("finetune_client")
    if kept is None or kept.connection_pool is not self.pool:
        kept = self.finetune_client = _create_client(self)
    return kept


def _loads_or_keeps(text: str) -> Any:
    """Read what lies in a list; what is no JSON, or nothing that kombu can read, stays text, which the delivery sets
    aside: it was taken from the list already."""
    try:
        return loads(text)
    except _STUMBLES:
        return text


def _deliver_well_formed(self: Any, entry: Any, queue: str) -> None:
    if queue not in {QUEUE, TRANSFER_QUEUE}:
        _deliver(self, entry, queue)
        return
    message = well_formed(entry, queue)
    try:
        _deliver(self, message, queue)
    except _STUMBLES as error:
        log.warning("message_not_understood", queue=queue, exc_info=True)
        _deliver(self, wrapped(entry, queue, f"Celery stumbled over it: {type(error).__name__}"), queue)
        for channel in self.channels:
            # Or it comes back to end the next worker. Not before its copy is on its way: there is no other.
            channel.qos.ack(message["properties"]["delivery_tag"])
