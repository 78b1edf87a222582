"""What this worker needs of kombu 5.7's Redis transport and has to take from inside it: whether it still waits for
messages, and four patches."""

import time
from typing import Any, cast

import structlog
from kombu.transport import redis as transport
from kombu.transport import virtual
from kombu.transport.redis import Channel, QoS, Transport
from kombu.utils.json import loads

from finetune_queue.contract import Stage
from finetune_queue.messaging import ACCESS, PRESIGN, QUEUE, SWEEP, TRANSFER_QUEUE, patch_channels, stage_task
from finetune_queue.store import OutOfMemoryError
from finetune_queue.store.scripts import load
from finetune_worker.envelope import well_formed, wrapped

log = structlog.get_logger(__name__)

_create_client = Channel._create_client  # type: ignore[attr-defined]
_deliver = Transport._deliver

_STUMBLES = (AttributeError, LookupError, TypeError, ValueError, RecursionError)
"""What kombu and Celery raise over a message that nobody foresaw; not what means a lost connection, or a stop."""

ACKED_EARLY = frozenset({PRESIGN, SWEEP, ACCESS, *map(stage_task, Stage)})
"""Tasks whose messages are acknowledged as soon as a thread takes them: what one of them asks for, a deadline asks for
again."""

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
    that is not one is set aside (:mod:`finetune_worker.envelope`), each keeps its Redis client, and no copies are made
    of messages that nobody would miss (:class:`SparingQoS`).

    kombu makes a client for every message that it sends or acknowledges, and for every task event: a tenth of the CPU
    of a busy worker goes into making them. A client holds nothing but its pool of connections, so one will do for as
    long as the channel has the same pool.
    """
    patch_channels()
    Channel.QoS = SparingQoS
    Channel._create_client = _kept_client  # type: ignore[attr-defined]
    Transport._deliver = _deliver_well_formed  # type: ignore[assignment, method-assign]
    transport.loads = _loads_or_keeps  # type: ignore[attr-defined]


class SparingQoS(QoS):
    """Lays no copies of messages in Redis that are acknowledged early: a transaction to write each, and one to remove
    it, take a seventh of a busy worker's CPU. A worker that dies in the moment between loses the message, which the
    job's deadline sends again within seconds; the copy would lie there for the visibility timeout, an hour.

    And what cannot be copied or put back on a full server is put back all the same: it is in no other place.
    """

    def append(self, message: Any, delivery_tag: str) -> None:
        """Remember a message until it is acknowledged.

        Raises:
            OutOfMemoryError: the server is full; the message is in its queue again.
        """
        if _acked_early(message):
            virtual.QoS.append(self, message, delivery_tag)
            return
        try:
            super().append(message, delivery_tag)
        except OutOfMemoryError:
            self._put_back(message)
            raise

    def ack(self, delivery_tag: str) -> None:
        """Forget a message."""
        message = self._in_hand(delivery_tag)
        if message is not None and _acked_early(message):
            virtual.QoS.ack(self, delivery_tag)
        else:
            super().ack(delivery_tag)

    def restore_by_tag(self, tag: str, client: Any = None, leftmost: bool = False) -> None:  # noqa: FBT001, FBT002
        """Put a message back: one that no thread took before the worker stopped, or (``leftmost``) one to try later."""
        message = self._in_hand(tag)
        if message is not None and _acked_early(message):
            self._put_back(message, client, leftmost=leftmost)
            return
        try:
            super().restore_by_tag(tag, client=client, leftmost=leftmost)
        except OutOfMemoryError:
            if message is None:
                raise
            self._put_back(message, client, leftmost=leftmost)
            cast("Any", self)._remove_from_indices(tag).execute()

    def _in_hand(self, tag: str) -> Any:
        delivered, acknowledged = cast("Any", self._delivered), cast("Any", self._dirty)
        return None if tag in acknowledged else delivered.get(tag)

    def _put_back(self, message: Any, client: Any = None, *, leftmost: bool = False) -> None:
        place, channel = message.delivery_info, cast("Any", self.channel)
        with channel.conn_or_acquire(client) as connected:
            channel._do_restore_message(
                message._raw, place["exchange"], place["routing_key"], _PutsBack(connected), leftmost
            )


class _PutsBack:
    """What kombu takes for the client that it pushes a message with."""

    def __init__(self, client: Any) -> None:
        self._script = load(client, "put_back")

    def lpush(self, queue: str, message: str) -> None:
        self._script([queue], [message, "LPUSH"])

    def rpush(self, queue: str, message: str) -> None:
        self._script([queue], [message, "RPUSH"])


def _acked_early(message: Any) -> bool:
    return message.headers.get("task") in ACKED_EARLY


def _kept_client(self: Any, asynchronous: bool = False) -> Any:  # noqa: FBT001, FBT002 - kombu's signature
    if asynchronous:
        return _create_client(self, asynchronous=True)
    kept = vars(self).get("finetune_client")
    if kept is None or kept.connection_pool is not self.pool:
        kept = self.finetune_client = _create_client(self)
    return kept


def _loads_or_keeps(text: str) -> Any:
    """Read what lies in a list; what is not JSON, or not readable by kombu, stays text, which the delivery sets
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
        _deliver(self, wrapped(entry, queue, f"Celery failed on it: {type(error).__name__}"), queue)
        for channel in self.channels:
            # Or it comes back to end the next worker. Not before its copy is on its way: there is no other.
            channel.qos.ack(message["properties"]["delivery_tag"])
