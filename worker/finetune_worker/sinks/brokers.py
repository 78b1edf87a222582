"""An event as a message on a Celery queue or on any broker that kombu speaks."""

import json
import time
from typing import Any

from amqp.exceptions import MessageNacked
from celery import Celery
from kombu import Connection
from kombu.exceptions import KombuError

from finetune_queue.contract import Event, Sink, SinkKind
from finetune_queue.redaction import redact_text
from finetune_queue.store import MOST_WAITING
from finetune_worker.sinks.errors import DeliveryError, never_connected
from finetune_worker.sinks.trace import trace_headers

_LONGEST_ANSWER = 1 / 3
"""The share of a delivery's time that a single answer of the broker may take. The time is checked between answers, so
it may be exceeded by one of them, or by those of a connection's handshake."""

_ALREADY_THERE = 406  # with other arguments (AMQP 0-9-1, precondition-failed)


def send_task(app: Celery, sink: Sink, event: Event, text: str) -> None:
    """Send a task by this service's own broker; its id is the event's.

    Raises:
        DeliveryError: the broker did not take it, or its queue is full.
    """
    try:
        with app.producer_or_acquire() as producer:
            _check_room(sink, _length(producer.channel.queue_declare(sink.name)))
            _publish_task(app, producer, sink, event, text)
    except _errors_of(app.connection_for_write()) as error:
        raise _failed(sink, error, unreachable=True) from error


class Broker:
    """A connection to somebody else's broker, for a few deliveries; not safe in threads."""

    def __init__(self, sink: Sink, app: Celery, seconds: float, end: float) -> None:
        """Connect, for a delivery that may take ``seconds`` and so until ``end`` (monotonic).

        Raises:
            DeliveryError: no connection.
        """
        self._app = app
        self._answer = seconds * _LONGEST_ANSWER
        self._declared: set[str] = set()
        try:
            self._connection = Connection(
                sink.target,
                connect_timeout=self._answer,
                transport_options=_options(sink.target.partition("://")[0], self._answer),
            )
        except ImportError as error:
            message = f"{sink.shown} needs a driver that is not installed on this worker"
            raise DeliveryError(message, unreachable=True, whole_origin=True) from error
        try:
            # Once: kombu's own second try could take longer than a line is held.
            self._connection.ensure_connection(max_retries=0, reraise_as_library_errors=False)
            _check_time(end)
            self._channel: Any = self._connection.channel()
        except _errors_of(self._connection) as error:
            self.close()
            raise _failed(sink, error, unreachable=True) from error

    def send(self, sink: Sink, event: Event, text: str, end: float) -> None:
        """Put the event into the sink's queue, which is made if it is not there, until ``end`` (monotonic). With AMQP
        the broker confirms it.

        Raises:
            DeliveryError: it was not taken, or nobody knows; the connection is of no use any more.
        """
        try:
            _check_room(sink, self._declare(sink, end))
            _check_time(end)
            with self._connection.Producer(self._channel) as producer:
                if sink.task:
                    _publish_task(self._app, producer, sink, event, text, confirm_timeout=self._answer)
                else:
                    producer.publish(
                        text,
                        routing_key=sink.name,
                        content_type="application/json",
                        content_encoding="utf-8",
                        headers=trace_headers(event),
                        message_id=event.id,
                        type=event.type,
                        confirm_timeout=self._answer,
                    )
        except _errors_of(self._connection) as error:
            refused = (*self._connection.channel_errors, MessageNacked)
            raise _failed(sink, error, unreachable=not isinstance(error, refused)) from error

    def _declare(self, sink: Sink, end: float) -> int:
        """Make sure that the queue is there, as a broker drops what has none; returns how many messages wait in it."""
        if sink.name not in self._declared:
            self._declared.add(sink.name)
            try:
                return _length(self._channel.queue_declare(sink.name, durable=True, auto_delete=False))
            except self._connection.channel_errors as error:
                if getattr(error, "code", None) != _ALREADY_THERE:
                    raise
                _check_time(end)
                self._channel = self._connection.channel()
            _check_time(end)
        return _length(self._channel.queue_declare(sink.name, passive=True))

    def close(self) -> None:
        """Close the connection, whatever state it is in."""
        self._connection.release()


def _errors_of(connection: Any) -> tuple[type[Exception], ...]:
    """The errors that a broker's own transport raises, and kombu's."""
    return (*connection.connection_errors, *connection.channel_errors, KombuError, MessageNacked, OSError)


def _check_time(end: float) -> None:
    # Each step may be in time and all of them take longer than a line is held: then another would deliver it again.
    if time.monotonic() > end:
        raise TimeoutError("its answers took too long, all together")


def _length(declared: Any) -> int:
    return int(declared.message_count)


def _publish_task(app: Celery, producer: Any, sink: Sink, event: Event, text: str, **options: Any) -> None:
    """Publish as Celery's own clients do (message protocol 2), without their retries."""
    message = app.amqp.as_task_v2(event.id, sink.task, args=(json.loads(text),), ignore_result=True)
    headers, properties, body = message.headers | trace_headers(event), message.properties, message.body
    producer.publish(
        body,
        exchange="",
        routing_key=sink.name,
        serializer="json",
        headers=headers,
        delivery_mode=2,
        retry=False,
        **properties,
        **options,
    )


def _check_room(sink: Sink, waiting: int) -> None:
    if waiting >= MOST_WAITING:
        message = f"{sink.shown} holds {waiting} messages that nobody consumes"
        raise DeliveryError(message)


def _options(scheme: str, seconds: float) -> dict[str, Any]:
    if scheme.startswith("amqp"):
        return {"confirm_publish": True, "read_timeout": seconds, "write_timeout": seconds}
    if scheme.startswith("redis"):
        return {"socket_timeout": seconds, "socket_connect_timeout": seconds}
    return {}


def _failed(sink: Sink, error: Exception, *, unreachable: bool) -> DeliveryError:
    said = " ".join(redact_text(str(error)).split())[:200] or type(error).__name__
    # What a broker says may be for a user or a queue alone. A queue of this service is a line of its own.
    whole = unreachable and (sink.kind is SinkKind.CELERY or never_connected(error))
    return DeliveryError(f"{sink.shown} did not accept it: {said}", unreachable=unreachable, whole_origin=whole)
