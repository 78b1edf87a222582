"""What this worker needs of kombu 5.7's Redis transport and has to take from inside it: whether it still waits for
messages, and two patches."""

import time
from typing import Any

from kombu.transport.redis import Channel

from finetune_queue.messaging import patch_channels

_create_client = Channel._create_client  # type: ignore[attr-defined]


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
    """Patch kombu's channels in this process: one that lost its connection says so (:func:`patch_channels`), and each
    keeps its Redis client.

    kombu makes a client for every message that it sends or acknowledges, and for every task event: a tenth of the CPU
    of a busy worker went into making them. A client holds nothing but its pool of connections, so one will do for as
    long as the channel has the same pool.
    """
    patch_channels()
    Channel._create_client = _kept_client  # type: ignore[attr-defined]


def _kept_client(self: Any, asynchronous: bool = False) -> Any:  # noqa: FBT001, FBT002 - kombu's signature
    if asynchronous:
        return _create_client(self, asynchronous=True)
    kept = vars(self).get("finetune_client")
    if kept is None or kept.connection_pool is not self.pool:
        kept = self.finetune_client = _create_client(self)
    return kept
