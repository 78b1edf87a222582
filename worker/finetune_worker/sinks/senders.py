"""Which sinks a job has, which of them this service may reach, and the sending to each kind."""

import time
from contextlib import ExitStack
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import structlog
from celery import Celery

from finetune_queue.contract import Event, FineTuneRequest, Sink, SinkKind, parse_sink, parse_sinks
from finetune_queue.contract.sink import allowed, named
from finetune_queue.loopback import is_loopback
from finetune_queue.public_fetch.addresses import AddressPolicy, check_url
from finetune_queue.public_fetch.errors import FetchError
from finetune_queue.settings import Settings
from finetune_queue.store import LocalQueues, QueueFullError, RedisError
from finetune_worker.sinks.brokers import Broker, send_task
from finetune_worker.sinks.errors import DeliveryError
from finetune_worker.sinks.webhook import post

log = structlog.get_logger(__name__)

LONGEST = 15.0
"""Seconds that one delivery may take."""


class Senders:
    """The rules for sinks that a worker's settings make: which a job has, and which may be reached. Safe in threads."""

    def __init__(self, settings: Settings, app: Celery, queues: LocalQueues) -> None:
        self._settings = settings
        self._app = app
        self._queues = queues
        self.own = parse_sinks(settings.finetune_sinks)
        self._own_ids = {sink.id for sink in self.own}

    @property
    def seconds(self) -> float:
        """How long one delivery may take: less than the hold of a line, so that nobody takes it over meanwhile."""
        return min(LONGEST, self._settings.finetune_lease / 2)

    def of(self, request: FineTuneRequest | None, only: str | None = None) -> tuple[Sink, ...] | None:
        """Return the sinks that a job's events go to, each once: those of the service, then those that the request
        names. ``only`` is the URL of a sink that they go to instead. None if this version cannot read that URL."""
        if only is not None:
            try:
                return (parse_sink(only),)
            except ValueError:
                return None
        of_request = request.sinks if request is not None else ()
        return tuple({sink.id: sink for sink in (*self.own, *of_request)}.values())

    def refusal(self, sink: Sink) -> str | None:
        """Say why this service does not deliver to a sink; None if it does."""
        if sink.kind is SinkKind.WEB and not self._settings.signing_secrets(sink.origin):
            return f"{sink.shown}: there is no FINETUNE_SIGNING_SECRET to sign deliveries with."
        if not (sink.id in self._own_ids or allowed(sink, self._settings.finetune_reply_to) or self._local_web(sink)):
            return f"{sink.shown}: FINETUNE_REPLY_TO does not let a request name this sink."
        if sink.kind is SinkKind.WEB and not self._may_be_public(sink):
            return f"{sink.shown}: only public addresses on port 443, and hosts in FINETUNE_REPLY_TO, may be reached."
        return None

    def _may_be_public(self, sink: Sink) -> bool:
        """Tell whether the URL's text alone lets it be reached; what a name resolves to is judged at the delivery."""
        try:
            check_url(sink.target, self.policy(sink))
        except FetchError:
            return False
        return True

    def policy(self, sink: Sink) -> AddressPolicy:
        """Return which addresses a web sink may have: a private one only if the operator named its host."""
        trusted = sink.id in self._own_ids or named(sink, self._settings.finetune_reply_to)
        return AddressPolicy(
            trusted_origins=frozenset({sink.origin} if trusted else ()),
            allow_loopback=self._settings.segmind_is_loopback,
        )

    def _local_web(self, sink: Sink) -> bool:
        return (
            sink.kind is SinkKind.WEB
            and self._settings.segmind_is_loopback
            and is_loopback(urlsplit(sink.origin).hostname)
        )

    def open(self) -> "Sending":
        """Begin deliveries by the calling thread; leaving the ``with`` block closes their connections."""
        return Sending(self, self._settings, self._app, self._queues)


class Sending:
    """Deliveries by one thread, which share a connection to each broker."""

    def __init__(self, senders: Senders, settings: Settings, app: Celery, queues: LocalQueues) -> None:
        self._senders = senders
        self._settings = settings
        self._app = app
        self._queues = queues
        self._brokers: dict[str, Broker] = {}
        self._silent: list[Broker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with ExitStack() as ending:
            for broker in (*self._brokers.values(), *self._silent):
                ending.callback(broker.close)

    def send(self, sink: Sink, event: Event, text: str) -> int | None:
        """Deliver one event, ``text`` being its JSON as it was stored; returns the status of an HTTP answer.

        Raises:
            DeliveryError: it was not taken, or nobody knows.
        """
        refusal = self._senders.refusal(sink)
        if refusal is not None:
            raise DeliveryError(refusal, hopeless=True)
        try:
            return self._send(sink, event, text)
        except DeliveryError:
            raise
        except Exception as error:
            # A driver's own kind of failure must not keep its line from being tried again, and reported.
            log.exception("sender_crashed", job_id=event.subject, event_id=event.id, sink=sink.shown)
            raise DeliveryError(f"{sink.shown} met an unexpected {type(error).__name__}") from error

    def _send(self, sink: Sink, event: Event, text: str) -> int | None:
        match sink.kind:
            case SinkKind.WEB:
                secrets, policy = self._settings.signing_secrets(sink.origin), self._senders.policy(sink)
                return post(sink, event, text, secrets=secrets, policy=policy, seconds=self._senders.seconds)
            case SinkKind.CELERY:
                send_task(self._app, sink, event, text)
            case SinkKind.BROKER:
                self._to_broker(sink, event, text)
            case SinkKind.STREAM | SinkKind.LIST:
                self._to_local(sink, text)
        return None

    def _to_local(self, sink: Sink, text: str) -> None:
        add = self._queues.add_to_stream if sink.kind is SinkKind.STREAM else self._queues.push_to_list
        try:
            add(sink.name, text)
        except (QueueFullError, RedisError) as error:
            raise DeliveryError(
                f"{sink.shown} did not accept it: {error}", unreachable=True, whole_origin=True
            ) from error

    def _to_broker(self, sink: Sink, event: Event, text: str) -> None:
        seconds = self._senders.seconds
        end = time.monotonic() + seconds
        broker = self._brokers.get(sink.target)
        if broker is None:
            broker = self._brokers[sink.target] = Broker(sink, self._app, seconds, end)
        try:
            broker.send(sink, event, text, end)
        except Exception as error:
            # The connection, or its channel, is in an unknown state.
            del self._brokers[sink.target]
            if isinstance(error, DeliveryError) and not error.unreachable:
                broker.close()
            else:
                self._silent.append(broker)  # to close it may take as long again: not before the failure is written
            raise
