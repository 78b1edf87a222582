"""Real workers: one job with a sink of each kind, and workers that are killed between a delivery and its note."""

import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from finetune_queue.contract import JobState
from finetune_queue.local.stack import LocalStack
from finetune_queue.local.valkey import ValkeyServer
from finetune_queue.sdk import FineTuneQueue
from finetune_queue.staging import stage
from finetune_queue.store import keys
from support.images import make_dataset_folder
from support.samples import sample
from support.sinks import SECRET, Receiver, kinds
from support.until import until

SECONDS = 40
EVENTS = ["accepted", "uploading", "submitting", "training", "downloading", "succeeded"]
SCHEMA = Path(__file__).resolve().parents[2] / "docs" / "contract" / "event.schema.json"


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    with ValkeyServer(tmp_path_factory.mktemp("other")) as server:
        yield server


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, other: ValkeyServer) -> Iterator[LocalStack]:
    with LocalStack(
        tmp_path_factory.mktemp("stack"),
        workers=2,
        rate_limit="50/1",
        sandbox={"SANDBOX_TRAINING_SECONDS": "0.2", "SANDBOX_WEIGHTS_BYTES": "65536"},
        settings={
            "FINETUNE_POLL_MIN_INTERVAL": "0.2",
            "FINETUNE_BACKOFF_BASE": "0.1",
            "FINETUNE_BACKOFF_MAX": "0.5",
            "FINETUNE_LEASE": "4",
            "SEGMIND_READ_TIMEOUT": "3",
            "SEGMIND_CALL_TIMEOUT": "4",
            "FINETUNE_HANDOVER": "2",
            "FINETUNE_SIGNING_SECRET": SECRET,
            "FINETUNE_REPLY_TO": f"celery:// stream:// list:// https:// redis://127.0.0.1:{other.port}",
            "FINETUNE_SINKS": "stream://everything?events=all list://results?events=succeeded",
            "FINETUNE_LOG_FORMAT": "json",
        },
    ) as running:
        yield running


@pytest.fixture(scope="module")
def queue(stack: LocalStack) -> Iterator[FineTuneQueue]:
    with FineTuneQueue(stack.settings) as found:
        yield found


@pytest.fixture(scope="module")
def client(stack: LocalStack) -> Iterator[Any]:
    with redis.Redis.from_url(stack.valkey.url, decode_responses=True) as connection:
        yield connection


@pytest.fixture(scope="module")
def dataset(stack: LocalStack, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of images that are staged."""
    return stage(str(make_dataset_folder(tmp_path_factory.mktemp("images"), count=6)), stack.settings)


def read(rows: Any) -> list[dict[str, Any]]:
    return [json.loads(row) for row in rows]


def test_every_kind_of_sink_gets_the_same_events(
    queue: FineTuneQueue, client: Any, dataset: str, other: ValkeyServer, stack: LocalStack
) -> None:
    with Receiver() as receiver:
        sinks = [
            "celery://shop/shop.finetuned",
            "stream://mine",
            "list://mine-too",
            receiver.url("/hook?key=hidden-in-query"),
            f"{other.url}?queue=elsewhere",
        ]
        job = queue.submit(sample(dataset=dataset, reply_to=sinks)).wait(SECONDS)
        assert job.state is JobState.SUCCEEDED, job.record.error
        with redis.Redis.from_url(other.url, decode_responses=True) as elsewhere:

            def all_there() -> bool:
                lengths = [client.llen(f"{keys.BROKER_PREFIX}shop"), client.xlen("mine"), client.llen("mine-too")]
                return [*lengths, len(receiver.got), elsewhere.llen("elsewhere")] == [len(EVENTS)] * 5

            until(all_there, seconds=SECONDS)
            messages = read(reversed(elsewhere.lrange("elsewhere", 0, -1)))
    expected = [event.model_dump(mode="json") for event in job.events() if event.kind != "progress"]
    assert kinds(expected) == EVENTS
    assert receiver.got == expected
    assert receiver.verified() == len(EVENTS)
    assert read(fields["event"] for _, fields in client.xrange("mine")) == expected
    assert read(reversed(client.lrange("mine-too", 0, -1))) == expected
    assert [message["properties"]["message_id"] for message in messages] == [event["id"] for event in expected]
    celery = read(reversed(client.lrange(f"{keys.BROKER_PREFIX}shop", 0, -1)))
    assert [message["headers"]["id"] for message in celery] == [event["id"] for event in expected]

    def everything() -> list[dict[str, Any]]:
        return read(fields["event"] for _, fields in client.xrange("everything"))

    told = [event.model_dump(mode="json") for event in job.events()]
    until(lambda: [event for event in everything() if event["subject"] == job.id] == told, seconds=SECONDS)
    until(lambda: client.llen("results") >= 1, seconds=SECONDS)
    check = Draft202012Validator(json.loads(SCHEMA.read_text("utf-8")))
    for event in everything():
        check.validate(event)
    shown = json.dumps([job.as_dict(), expected, [row.as_dict() for row in queue.deliveries(job.id)]])
    assert "hidden-in-query" not in shown
    assert all("hidden-in-query" not in line for worker in stack.workers for line in worker.lines())


def test_a_worker_killed_between_a_delivery_and_its_note_repeats_it_and_loses_nothing(
    queue: FineTuneQueue, client: Any, dataset: str, stack: LocalStack
) -> None:
    """All workers die while the receiver has the event and has not answered."""
    killed = threading.Event()

    with Receiver() as receiver:

        def kill(handler: Any) -> None:
            for worker in stack.workers:
                if worker.running:
                    worker.send_signal(signal.SIGKILL)
            killed.set()
            handler.close_connection = True

        receiver.refuse = [kill]
        job = queue.submit(sample(dataset=dataset, reply_to=[receiver.url("/hook")]))
        assert killed.wait(SECONDS)
        first_id = f"{job.id}-1"
        until(lambda: not any(worker.running for worker in stack.workers), seconds=30)
        assert [row for row in queue.deliveries(job.id) if row.sink.startswith("http")] == []
        stack.start_worker("after")
        job.wait(SECONDS)
        until(lambda: len(receiver.got) == len(EVENTS), seconds=SECONDS)
    assert receiver.got[0]["id"] == first_id
    assert [event["sequence"] for event in receiver.got] == sorted(event["sequence"] for event in receiver.got)
    assert kinds(receiver.got) == EVENTS
    assert len(receiver.seen) == len(EVENTS) + 1


def test_a_sink_that_is_down_is_logged_once_and_when_it_is_back(
    queue: FineTuneQueue, dataset: str, stack: LocalStack
) -> None:
    with Receiver() as receiver:
        url, port = receiver.url("/hook"), receiver.port
    job = queue.submit(sample(dataset=dataset, reply_to=[url])).wait(SECONDS)
    assert job.state is JobState.SUCCEEDED

    def logged(word: str) -> list[dict[str, Any]]:
        """What any of the workers said of this sink: whoever holds the line tries it."""
        lines = [line for worker in stack.workers for line in worker.lines() if f'"{word}"' in line]
        return [record for record in map(json.loads, lines) if str(port) in record["line"]]

    until(lambda: len(queue.deliveries(job.id)) >= 3, seconds=SECONDS)
    down = logged("sink_down")
    assert [record["line"].partition("#")[0] for record in down] == [f"http://127.0.0.1:{port}"]
    with Receiver(port) as back:
        until(lambda: len(back.got) == len(EVENTS), seconds=SECONDS)
        assert kinds(back.got) == EVENTS
    until(lambda: bool(logged("sink_up")), seconds=30)
