"""The exact Celery messages, as they lie in Redis: golden files, so that an upgrade that changes them is seen. And what
the AsyncAPI document says of what brings an event.

The files are docs/contract/messages. What differs from message to message is written there as {placeholders}.
"""

import base64
import json
import re
from typing import Any

import pytest
import redis
import yaml
from jsonschema import Draft7Validator  # type: ignore[import-untyped]
from referencing import Registry, Resource

from contract.published import FOLDER, load
from finetune_queue.contract import EventType, JobState, parse_sink
from finetune_queue.contract.event import Event
from finetune_queue.messaging import ACCEPT, BEGIN, CALL, CONTINUE, QUEUE, RUN, producer_app, queue_lists
from finetune_queue.settings import Settings
from finetune_queue.store import LocalQueues, keys
from finetune_worker.sinks import Senders
from support.sinks import SECRET, Receiver

LISTS = {
    CALL: "{finetune}:finetune",
    CONTINUE: "{finetune}:finetune\x06\x163",
    BEGIN: "{finetune}:finetune\x06\x166",
    ACCEPT: "{finetune}:finetune\x06\x169",
}
"""Where the messages of a queue are, as others are told: docs/contract/README.md, docs/architecture.md."""


def in_redis(client: Any, key: str) -> dict[str, Any]:
    """The one message of a list, with its body decoded and what is never the same replaced."""
    [text] = client.lrange(key, 0, -1)
    message: dict[str, Any] = json.loads(text)
    message["body"] = json.loads(base64.b64decode(message["body"]))
    headers, properties = message["headers"], message["properties"]
    assert re.fullmatch(r"gen\d+@.+", headers["origin"])
    headers["origin"] = "{process@host}"
    properties["delivery_tag"] = "{uuid}"
    if properties.get("reply_to"):
        properties["reply_to"] = "{uuid}"
    return message


@pytest.fixture
def settings(redis_url: str) -> Settings:
    return Settings(finetune_redis_url=redis_url)


def test_a_request_as_a_raw_celery_client_sends_it(settings: Settings, client: redis.Redis) -> None:
    request = load("examples/request.minimal.json")
    job_id = "5a1f0f4e-60b5-4d39-8f0f-0a3c2a4b9d11"
    producer_app(settings).send_task(RUN, [request], queue=QUEUE, task_id=job_id, priority=ACCEPT)
    found = in_redis(client, LISTS[ACCEPT])
    assert found == load("messages/finetune.run.json")


def test_each_priority_has_a_list_and_there_are_no_others(settings: Settings, client: redis.Redis) -> None:
    assert queue_lists(QUEUE) == LISTS
    with producer_app(settings) as app:
        for priority, name in LISTS.items():
            app.send_task(RUN, [], queue=QUEUE, priority=priority)
            assert client.llen(name) == 1


def send(settings: Settings, client: redis.Redis, url: str, body: dict[str, Any]) -> None:
    with Senders(settings, producer_app(settings), LocalQueues(client)).open() as sending:
        sending.send(parse_sink(url), Event.model_validate(body), json.dumps(body))


def test_an_event_as_a_celery_sink_gets_it(settings: Settings, client: redis.Redis) -> None:
    body = load(f"examples/event.{EventType.SUCCEEDED}.json")
    assert body["data"]["state"] == JobState.SUCCEEDED
    send(settings, client, "celery://orders/orders.finetuned", body)
    found = in_redis(client, f"{keys.BROKER_PREFIX}orders")
    assert found == load("messages/celery-sink.json")


TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
OF_HTTP = {"host", "user-agent", "accept", "accept-encoding", "connection", "content-type", "content-length"}


def agrees(channel: str, name: str, content_type: str, headers: dict[str, Any], payload: Any) -> None:
    """Hold what was sent to a message of a channel, whose every header is described."""
    document = yaml.safe_load((FOLDER / "asyncapi.yaml").read_text("utf-8"))
    assert name in document["channels"][channel]["messages"]
    message = document["components"]["messages"][name]
    assert message["contentType"] == content_type
    described = message["headers"]
    Draft7Validator(described).validate(headers)
    celery = load("messages/celery-sink.json")["headers"] if name == "EventTask" else {}
    assert {"traceparent"} <= headers.keys() <= described["properties"].keys() | celery.keys()
    event = Resource.from_contents(load("event.schema.json"))
    registry: Registry[Any] = Registry().with_resource("event.schema.json", event)
    Draft7Validator(message["payload"], registry=registry).validate(payload)


@pytest.mark.parametrize(
    ("channel", "name", "url"),
    [
        ("celery-sink", "EventTask", "celery://orders/orders.finetuned"),
        ("broker-sink", "EventTask", "{redis}?queue=orders&task=orders.finetuned"),
        ("broker-sink", "EventMessage", "{redis}?queue=orders"),
    ],
)
def test_a_message_that_brings_an_event_is_as_asyncapi_says(
    redis_url: str, client: redis.Redis, channel: str, name: str, url: str
) -> None:
    body = load("examples/event.succeeded.json") | {"traceparent": TRACE}
    sink = url.format(redis=redis_url)
    send(Settings(finetune_redis_url=redis_url, finetune_reply_to=("celery://", "redis://")), client, sink, body)
    [key] = [key for key in client.scan_iter(match="*orders") if client.type(key) == "list"]
    message = json.loads(client.lindex(key, 0) or "")
    payload = json.loads(base64.b64decode(message["body"]))
    agrees(channel, name, message["content-type"], message["headers"], payload)
    if name == "EventMessage":
        found = {field: message["properties"][field] for field in ("message_id", "type")}
        assert found == {"message_id": body["id"], "type": body["type"]}


def test_a_post_that_brings_an_event_is_as_asyncapi_says(redis_url: str, client: redis.Redis) -> None:
    body = load("examples/event.succeeded.json") | {"traceparent": TRACE}
    with Receiver() as receiver:
        settings = Settings(
            finetune_redis_url=redis_url, segmind_base_url="http://127.0.0.1:1", finetune_signing_secret=SECRET
        )
        send(settings, client, receiver.url("/hook"), body)
    [headers] = receiver.got_headers
    ours = {name: value for name, value in headers.items() if name not in OF_HTTP}
    agrees("web-sink", "EventPost", headers["content-type"], ours, receiver.got[0])
