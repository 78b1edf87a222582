"""Entries of the queue's list that are no messages: the worker lives, and each is kept with its bytes and told of."""

import base64
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from finetune_queue.contract import JobState
from finetune_queue.local.stack import LocalStack
from finetune_queue.messaging import ACCEPT, QUEUE, queue_lists
from finetune_queue.sdk import FineTuneQueue
from finetune_queue.store import keys
from support.images import make_dataset_folder
from support.samples import sample
from support.until import until

SECONDS = 60
LIST = queue_lists(QUEUE)[ACCEPT]
"""Where kombu puts a request of a raw client."""

Entry = dict[str, Any]


def well_made(mark: str) -> Entry:
    """Return the entry of a request as Celery's own clients make it, with a mark in it to find it by."""
    call = [[{**sample(), "dataset": "https://example.com/faces.zip", "labels": {"mark": mark}}], {}, {}]
    return {
        "body": base64.b64encode(json.dumps(call).encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"task": "finetune.run", "id": mark, "lang": "py", "retries": 0, "mark": mark},
        "properties": {
            "correlation_id": mark,
            "delivery_info": {"exchange": "", "routing_key": "finetune"},
            "priority": 9,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
        },
    }


def without(*path: str) -> Callable[[Entry], object]:
    def change(entry: Entry) -> Entry:
        part = entry
        for name in path[:-1]:
            part = part[name]
        del part[path[-1]]
        return entry

    return change


def having(value: object, *path: str) -> Callable[[Entry], object]:
    def change(entry: Entry) -> Entry:
        part = entry
        for name in path[:-1]:
            part = part[name]
        part[path[-1]] = value
        return entry

    return change


def call(body: object) -> Callable[[Entry], object]:
    return having(base64.b64encode(json.dumps(body).encode()).decode(), "body")


MALFORMED: dict[str, Callable[[Entry], object]] = {
    "no content type": without("content-type"),
    "no content encoding": without("content-encoding"),
    "no properties": without("properties"),
    "no delivery tag": without("properties", "delivery_tag"),
    "no delivery info": without("properties", "delivery_info"),
    "no routing key": without("properties", "delivery_info", "routing_key"),
    "no id": without("headers", "id"),
    "a number as id": having(7, "headers", "id"),
    "a list as task": having(["finetune.run"], "headers", "task"),
    "headers that are text": having("task", "headers"),
    "headers that are null": having(None, "headers"),
    "no body": without("body"),
    "a body that is no text": having({"a": 1}, "body"),
    "a body that is not base64": having("!!!", "body"),
    "another encoding of the body": having("rot13", "properties", "body_encoding"),
    "two parts": call([[], {}]),
    "a number as arguments": call([7, {}, {}]),
    "an object": call({"a": 1}),
    "the request alone": lambda _: {**sample(), "labels": {}},
    "a list": lambda entry: [entry],
    "a number": lambda _: 7,
    "an unknown compression": having("zip-it", "headers", "compression"),
    "times that are none": having("soon", "headers", "timelimit"),
    "a priority beyond all numbers": having(float("inf"), "properties", "priority"),
    "a time as delivery tag": having({"__type__": "date", "__value__": "2026-01-01"}, "properties", "delivery_tag"),
    "a type that kombu cannot read": having({"__type__": "uuid", "__value__": 7}, "headers", "other"),
    "half a character in what is no message": lambda _: {"a": "\ud800"},
    "half a character in a body as it is": lambda entry: {
        **entry,
        "body": "\ud800",
        "properties": {**entry["properties"], "body_encoding": None},
    },
    "half a character in the name of its task": having("finetune.\ud800", "headers", "task"),
    "half a character in its id": having("\ud800", "headers", "id"),
    "half a character in its request": call([[{**sample(), "advance_parameters": {"odd": "\ud800"}}], {}, {}]),
    "more brackets than can be read": having(base64.b64encode(b"[" * 100_000).decode(), "body"),
}


@pytest.fixture(scope="module")
def kept(stack: LocalStack) -> Any:
    with redis.Redis.from_url(stack.valkey.url) as client:
        yield client


def letters(client: Any) -> list[dict[bytes, bytes]]:
    rows: Any = client.xrange(keys.dead_letters())
    return [fields for _, fields in rows]


def test_what_is_no_message_is_kept_and_no_worker_ends(
    queue: FineTuneQueue, stack: LocalStack, kept: Any, tmp_path: Path
) -> None:
    pids = [worker.pid for worker in stack.workers]
    before = len(letters(kept))
    for name, change in MALFORMED.items():
        kept.lpush(LIST, json.dumps(change(well_made(name))))
    for text in (b"{ no json", b"\xff\xfe", b""):
        kept.lpush(LIST, text)
    wanted = before + len(MALFORMED) + 3

    until(lambda: len(letters(kept)) >= wanted, seconds=SECONDS)

    assert len(letters(kept)) == wanted
    images = make_dataset_folder(tmp_path / "images", count=1)
    assert queue.submit(sample(dataset=str(images))).wait(SECONDS).state is JobState.SUCCEEDED
    assert [worker.pid for worker in stack.workers if worker.running] == pids
    assert kept.hlen(f"{keys.BROKER_PREFIX}unacked") == 0
    said = [line for worker in stack.workers for line in worker.lines()]
    assert [line for line in said if well_made("no body")["body"][:40] in line] == [], "a log line shows a request"
