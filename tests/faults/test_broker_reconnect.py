"""A broker that dies while messages are in hand: what Celery then does with its connection must not end the worker."""

import logging
import socketserver
import threading
from pathlib import Path
from typing import Any

import pytest
import redis
from kombu import Connection, Consumer, Queue
from kombu.common import ignore_errors
from kombu.transport.redis import Channel

from finetune_queue.errors import QueueUnavailableError
from finetune_queue.local.valkey import ValkeyServer
from finetune_queue.messaging import QUEUE, Messenger, producer_app
from finetune_queue.settings import Settings


def test_channels_of_a_lost_connection_close_and_acknowledge_without_an_unknown_error(
    mended: None, tmp_path: Path
) -> None:
    got: list[Any] = []
    with ValkeyServer(tmp_path / "broker") as broker, Connection(broker.url) as connection:
        channels = [connection.default_channel, connection.channel()]
        for number, channel in enumerate(channels):
            queue = Queue(f"queue{number}")
            connection.Producer(channel=channel).publish({}, routing_key=queue.name, exchange="", declare=[queue])
            Consumer(channel, [queue], callbacks=[lambda _, message: got.append(message)]).consume()
        while len(got) < len(channels):
            connection.drain_events(timeout=30)
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.1)  # both wait for the next message
        broker.kill()
        with pytest.raises(connection.connection_errors):
            connection.drain_events(timeout=30)

        # As in celery.worker.consumer.Consumer.on_connection_error_after_connected, then in its acknowledgements.
        errors = connection.connection_errors
        connection.collect(socket_timeout=1)
        ignore_errors(connection, connection.close)
        for message in got:
            message.ack_log_error(logging.getLogger(__name__), errors)


def test_a_channel_makes_its_client_once_and_a_new_one_for_a_new_pool(mended: None, tmp_path: Path) -> None:
    with ValkeyServer(tmp_path / "broker") as broker, Connection(broker.url) as connection:
        channel: Any = connection.default_channel
        with channel.conn_or_acquire() as first, channel.conn_or_acquire() as second:
            assert first is second
        channel._disconnect_pools()  # as when the connection was lost
        with channel.conn_or_acquire() as other:
            assert other is not first
            assert other.ping()


def test_a_message_is_sent_though_the_declaration_before_it_met_a_lost_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: Any = Channel
    monkeypatch.setattr(kept, "_connparams", kept._connparams)  # put back after the test
    declare, failures = kept._queue_bind, [redis.ConnectionError("the broker went away")]

    def fails_once(*args: Any) -> None:
        while failures:
            raise failures.pop()
        declare(*args)

    monkeypatch.setattr(kept, "_queue_bind", fails_once)
    with ValkeyServer(tmp_path / "broker") as broker:
        app = producer_app(Settings(finetune_redis_url=broker.url))
        Messenger(app).sweep("default")
        assert Messenger(app).queued(QUEUE) == 1
        app.close()


def test_who_asks_a_broker_that_hangs_up_is_told_after_one_try() -> None:
    tries = []

    class HangsUp(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            tries.append(self.client_address)

    with socketserver.TCPServer(("127.0.0.1", 0), HangsUp) as broker:
        thread = threading.Thread(target=broker.serve_forever)
        thread.start()
        messenger = Messenger(
            producer_app(Settings(finetune_redis_url=f"redis://127.0.0.1:{broker.server_address[1]}"))
        )
        try:
            for ask in (messenger.lengths, lambda: messenger.workers(0.1)):
                tries.clear()
                with pytest.raises(QueueUnavailableError):
                    ask()
                assert len(tries) == 1
        finally:
            broker.shutdown()
            thread.join()
