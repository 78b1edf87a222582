"""What this worker changes in kombu 5.7's Redis transport, and reads from its inside: whether it still waits for
messages."""

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
"""What kombu and Celery raise for a message that they do not expect. Other errors may mean a lost connection, or a
stop."""

ACKED_EARLY = frozenset({PRESIGN, SWEEP, ACCESS, *map(stage_task, Stage)})
"""Tasks whose messages are acknowledged as soon as a thread takes them: if one is lost, a deadline sends it again."""

OVERDUE = 5.0
"""Seconds after which a BRPOP that the server should have ended by itself counts as unanswered."""


def fetches(consumer: Any) -> bool:
    """Tell whether the broker answers the consumer's requests for messages. True also if the consumer makes none, since
    all its threads are busy, or it was told to take from no queue."""
    if consumer is None or consumer.connection is None or consumer.task_consumer is None:
        return False
    channel = consumer.task_consumer.channel
    if not channel.active_queues or not channel.qos.can_consume():
        return True
    sent = channel._brpop_sent_at
    return sent is not None and time.monotonic() - sent < channel.brpop_timeout + OVERDUE


def patch_kombu() -> None:
    """Patch kombu's channels in this process:

    - one that lost its connection says so (:func:`patch_channels`);
    - an entry of a queue that is no message is set aside (:mod:`finetune_worker.envelope`);
    - no copy is kept of a message that need not be repeated (:class:`SparingQoS`);
    - a channel keeps its Redis client. kombu makes one for every message that it sends or acknowledges, and for every
      task event, which takes a tenth of a busy worker's CPU. A client holds nothing but its pool of connections, so one
      will do as long as the channel has the same pool.
    """
    patch_channels()
    Channel.QoS = SparingQoS
    Channel._create_client = _kept_client  # type: ignore[attr-defined]
    Transport._deliver = _deliver_well_formed  # type: ignore[assignment, method-assign]
    transport.loads = _loads_or_keeps  # type: ignore[attr-defined]


class SparingQoS(QoS):
    """Keeps no copy (kombu's ``unacked``) of a message that is acknowledged early. To write and remove the copies takes
    a seventh of a busy worker's CPU. A worker that dies in between loses the message, but the job's deadline sends it
    again within seconds; the copy would only come back after the visibility timeout, an hour.

    On a full server, which refuses kombu's writes, messages are put back all the same: they are nowhere else.
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
    """Stands in for the Redis client with which kombu pushes a message: by a script that a full server runs, too."""

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
    """Read an entry of a queue's list. One that is not JSON, or not readable by kombu, stays text, for the delivery to
    set aside: it has been taken from the list already."""
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
            # Else it would come back and end the next worker. Not before: until then this is its only copy.
            channel.qos.ack(message["properties"]["delivery_tag"])
