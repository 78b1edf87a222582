"""The exact Celery messages, as they lie in Redis: golden files, so that an upgrade that changes them is seen.

The files are docs/contract/messages. What differs from message to message is written there as {placeholders}.
"""

import base64
import json
import re
from typing import Any

import pytest
import redis

from contract.published import load
from finetune_queue.contract import EventType, JobState, parse_sink
from finetune_queue.contract.event import Event
from finetune_queue.messaging import ACCEPT, BEGIN, CALL, CONTINUE, QUEUE, RUN, producer_app, queue_lists
from finetune_queue.settings import Settings
from finetune_queue.store import LocalQueues, keys
from finetune_worker.sinks import Senders

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


def test_an_event_as_a_celery_sink_gets_it(settings: Settings, client: redis.Redis) -> None:
    body = load(f"examples/event.{EventType.SUCCEEDED}.json")
    event = Event.model_validate(body)
    assert event.data["state"] == JobState.SUCCEEDED
    with Senders(settings, producer_app(settings), LocalQueues(client)).open() as sending:
        sending.send(parse_sink("celery://orders/orders.finetuned"), event, json.dumps(body))
    found = in_redis(client, f"{keys.BROKER_PREFIX}orders")
    assert found == load("messages/celery-sink.json")
