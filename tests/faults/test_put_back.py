"""Messages that a worker took and puts back, as when it is stopped: none is lost on that way, whatever its shape."""

import base64
import contextlib
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from kombu import Connection, Consumer, Queue
from kombu.transport.redis import QoS

from finetune_queue.messaging import QUEUE
from finetune_queue.store import Outbox, Rejections, connect
from finetune_worker.envelope import NO_TASK, PROBLEM
from finetune_worker.intake import DeadLetterStep
from support.full import full

BODY = base64.b64encode(b"[[], {}, {}]").decode()

Entry = dict[str, Any]


@pytest.fixture
def connection(mended: None, redis_url: str) -> Iterator[Any]:
    with Connection(redis_url) as found:
        yield found


def entry(**changed: Any) -> Entry:
    place = {"exchange": "", "routing_key": QUEUE}
    made: Entry = {
        "body": BODY,
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"task": "finetune.run", "id": "a"},
        "properties": {"delivery_tag": "tag", "delivery_info": place, "body_encoding": "base64"},
    }
    properties = made["properties"] | changed.pop("properties", {})
    return made | {"properties": properties} | changed


def take(connection: Any, on_message: Any) -> None:
    """Take one message from the queue as Celery does, and do not acknowledge it."""
    with Consumer(connection.default_channel, [Queue(QUEUE)], on_message=on_message):
        connection.drain_events(timeout=30)


def put_back(connection: Any, client: Any) -> list[Entry]:
    """Put back what was not acknowledged, and return what is in the queue then."""
    connection.default_channel.qos.restore_unacked()
    assert client.hlen("unacked") == 0
    lists = [key for key in client.scan_iter(f"{QUEUE}*") if client.type(key) == "list"]
    return [json.loads(text) for key in lists for text in client.lrange(key, 0, -1)]


SHAPES: dict[str, Entry] = {
    "headers that are null": entry(headers=None),
    "a priority that is none": entry(properties={"priority": None}),
    "a priority beyond all numbers": entry(properties={"priority": float("inf")}),
    "another queue's name": entry(properties={"delivery_info": {"exchange": "", "routing_key": "elsewhere"}}),
    "no name of a queue": entry(properties={"delivery_info": {"exchange": "", "routing_key": ""}}),
    "an exchange that nobody knows": entry(properties={"delivery_info": {"exchange": "x", "routing_key": QUEUE}}),
    "a time as its tag": entry(properties={"delivery_tag": {"__type__": "date", "__value__": "2026-01-01"}}),
    "a type that kombu cannot read": entry(headers={"a": {"__type__": "uuid", "__value__": 7}}),
    "more brackets than can be read": entry(body="[" * 100_000, properties={"body_encoding": None}),
}


@pytest.mark.parametrize("task", ["finetune.run", "finetune.download"])
def test_a_message_of_either_kind_goes_back(connection: Any, client: Any, task: str) -> None:
    client.lpush(QUEUE, json.dumps(entry(headers={"task": task, "id": "a"})))

    take(connection, lambda _: None)

    [back] = put_back(connection, client)
    assert back["headers"]["task"] == task


@pytest.mark.parametrize("shape", SHAPES)
def test_a_message_of_any_shape_goes_back_to_the_queue_it_came_from(connection: Any, client: Any, shape: str) -> None:
    client.lpush(QUEUE, json.dumps(SHAPES[shape]))
    got: list[Any] = []

    take(connection, got.append)

    [back] = put_back(connection, client)
    assert len(got) == 1
    if PROBLEM in back["headers"]:
        assert json.loads(base64.b64decode(back["body"])) == SHAPES[shape]  # kept as it came
    else:
        assert back["body"] == SHAPES[shape]["body"]


def test_only_a_message_that_no_deadline_sends_again_has_a_copy_while_it_is_in_hand(
    connection: Any, client: Any
) -> None:
    for task, copies in {"finetune.run": 1, "finetune.download": 0}.items():
        client.lpush(QUEUE, json.dumps(entry(headers={"task": task, "id": "a"})))
        got: list[Any] = []

        take(connection, got.append)

        assert client.hlen("unacked") == copies, task
        got[0].ack()
        assert client.hlen("unacked") == 0
        assert put_back(connection, client) == []


def test_a_message_without_a_copy_is_the_next_when_it_went_back(connection: Any, client: Any) -> None:
    taken = entry(headers={"task": "finetune.download", "id": "a"})
    waits = entry(headers={"task": "finetune.download", "id": "b"})
    client.lpush(QUEUE, json.dumps(taken))

    take(connection, lambda _: None)
    client.lpush(QUEUE, json.dumps(waits))

    assert [back["headers"]["id"] for back in put_back(connection, client)] == ["b", "a"]  # taken from the right


def test_a_full_server_takes_back_the_message_that_it_handed_out_and_takes_no_copy_of(
    connection: Any, client: Any
) -> None:
    client.lpush(QUEUE, json.dumps(entry()))
    connection.default_channel.client.ping()
    with full(client), pytest.raises(redis.OutOfMemoryError):
        take(connection, lambda _: None)
    assert [back["body"] for back in put_back(connection, client)] == [BODY]


@pytest.mark.parametrize("task", ["finetune.run", "finetune.download"])
def test_a_full_server_takes_back_what_is_to_be_tried_later(connection: Any, client: Any, task: str) -> None:
    client.lpush(QUEUE, json.dumps(entry(headers={"task": task, "id": "a"})))
    got: list[Any] = []
    take(connection, got.append)
    with full(client):
        got[0].requeue()
    assert [back["headers"]["task"] for back in put_back(connection, client)] == [task]


@pytest.mark.parametrize("task", ["finetune.unknown", "finetune.download"])
def test_what_can_be_neither_understood_nor_written_down_goes_back_to_its_queue(
    connection: Any, client: Any, task: str
) -> None:
    later: list[Any] = []

    def call_after(_: float, function: Any) -> None:
        later.append(function)

    with connect("redis://127.0.0.1:1/0") as nowhere:
        container = SimpleNamespace(rejections=Rejections(nowhere, Outbox(nowhere)))
        consumer: Any = SimpleNamespace(
            app=SimpleNamespace(finetune=SimpleNamespace(container=container)),
            timer=SimpleNamespace(call_after=call_after),
            **dict.fromkeys(("on_decode_error", "on_unknown_message", "on_unknown_task", "on_invalid_task")),
        )
        DeadLetterStep(consumer)
        client.lpush(QUEUE, json.dumps(entry(headers={"task": task, "id": "a"})))

        take(connection, lambda message: consumer.on_unknown_task(message.body, message, KeyError(task)))

    assert client.llen(QUEUE) == 0
    [put_it_back] = later
    put_it_back()
    assert [json.loads(text)["headers"]["task"] for text in client.lrange(QUEUE, 0, -1)] == [task]
    assert len(put_back(connection, client)) == 1


def test_what_celery_stumbles_over_is_there_until_its_copy_is(
    connection: Any, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = QoS.append

    def loses_redis(qos: Any, message: Any, tag: str) -> None:
        if message.content_type == NO_TASK:
            raise redis.ConnectionError
        append(qos, message, tag)

    def stumbles(*_: object) -> None:
        raise TypeError

    monkeypatch.setattr(QoS, "append", loses_redis)
    client.lpush(QUEUE, json.dumps(entry()))

    with contextlib.suppress(redis.ConnectionError):
        take(connection, stumbles)

    assert [back["body"] for back in put_back(connection, client)] == [BODY]
