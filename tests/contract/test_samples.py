"""The samples of docs/samples as they are, run as programs of their own beside the whole system."""

import base64
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import requests

from finetune_queue.contract import JobState
from finetune_queue.local.processes import Child
from finetune_queue.local.stack import LocalStack
from finetune_queue.messaging import ACCEPT, QUEUE, Messenger, producer_app, queue_lists
from finetune_queue.sdk import FineTuneQueue
from finetune_queue.staging import stage
from support.images import make_dataset_folder
from support.samples import sample
from support.sinks import SECRET
from support.until import until

DOCS = Path(__file__).resolve().parents[2] / "docs"
SAMPLES = DOCS / "samples"
SECONDS = 30


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    with LocalStack(
        tmp_path_factory.mktemp("stack"),
        rate_limit="50/1",
        sandbox={"SANDBOX_TRAINING_SECONDS": "0.2", "SANDBOX_WEIGHTS_BYTES": "65536"},
        settings={"FINETUNE_POLL_MIN_INTERVAL": "0.2", "FINETUNE_SIGNING_SECRET": SECRET},
    ) as running:
        yield running


@pytest.fixture(scope="module")
def queue(stack: LocalStack) -> Iterator[FineTuneQueue]:
    with FineTuneQueue(stack.settings) as found:
        yield found


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset_folder(tmp_path_factory.mktemp("images"), count=6)


@pytest.fixture(scope="module")
def dataset(stack: LocalStack, images: Path) -> str:
    """The URL of images that the workers can read."""
    return stage(str(images), stack.settings)


def program(stack: LocalStack, *command: str, **settings: str) -> Child:
    """Start a sample that goes on; the caller stops it."""
    name = f"{Path(command[-1]).stem}-{time.monotonic_ns()}"
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    env = {**kept, **stack.settings_env, **settings}
    return Child(name, command, env=env, cwd=SAMPLES, log=stack.folder / f"{name}.log").start()


def run(stack: LocalStack, *command: str) -> str:
    """Run a sample to its end; returns the last word that it says."""
    done = subprocess.run(
        command,
        env={**os.environ, **stack.settings_env},
        cwd=SAMPLES,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


def succeeded(queue: FineTuneQueue, job_id: str) -> str:
    """Wait for a job that another program submitted; returns where its weights are."""
    until(lambda: any(job.id == job_id for job in queue.list()), seconds=SECONDS)
    job = queue.get(job_id).wait(SECONDS)
    assert job.state is JobState.SUCCEEDED, job.record.error
    assert job.record.weights is not None
    return job.record.weights.url


@pytest.fixture(scope="module")
def orders(stack: LocalStack) -> Iterator[Child]:
    """The Python service; it goes on with what came while it was down."""
    options = ["-Q", "orders", "-P", "solo", "--loglevel", "WARNING", "--without-gossip", "--without-mingle"]
    child = program(stack, sys.executable, "-m", "celery", "-A", "orders", "worker", *options)
    yield child
    child.stop(grace=5)


@pytest.mark.parametrize("script", ["submit_sdk.py", "submit_celery.py"])
def test_python_submits_and_reacts(
    stack: LocalStack, queue: FineTuneQueue, orders: Child, dataset: str, script: str
) -> None:
    order = script.partition(".")[0]
    weights = succeeded(queue, run(stack, sys.executable, script, dataset, order))
    orders.wait_for_line(lambda line: f"order {order}: weights at {weights}" in line, timeout=SECONDS)


def test_an_event_whose_task_raises_is_not_lost(
    stack: LocalStack, queue: FineTuneQueue, dataset: str, tmp_path: Path
) -> None:
    failing = f"""
import sys
sys.path.insert(0, {str(SAMPLES)!r})
import orders

def raises_at_first(said, tell=orders.tell):
    orders.tell = tell
    raise OSError("the mail server is away")

orders.tell = raises_at_first
app = orders.app
"""
    (tmp_path / "failing.py").write_text(failing)
    options = ["-Q", "failing", "-P", "solo", "--loglevel", "WARNING", "--without-gossip", "--without-mingle"]
    command = [sys.executable, "-m", "celery", "-A", "failing", "worker", *options]
    child = program(stack, *command, PYTHONPATH=str(tmp_path))
    try:
        sink = "celery://failing/orders.finetuned?events=succeeded"
        job = queue.submit(sample(dataset=dataset, labels={"order": "C-1"}, reply_to=[sink]))
        weights = succeeded(queue, job.id)
        child.wait_for_line(lambda line: f"order C-1: weights at {weights}" in line, timeout=SECONDS)
    finally:
        child.stop(grace=5)


def test_a_service_that_reacts_is_not_taken_for_one_of_the_workers(stack: LocalStack, orders: Child) -> None:
    messenger = Messenger(producer_app(stack.settings))
    until(lambda: bool(messenger.workers(0.5).others), seconds=SECONDS)
    answered = messenger.workers(0.5)
    assert [name.partition("@")[0] for name in answered.ours] == ["worker1"]
    assert [name.partition("@")[0] for name in answered.others] == ["celery"]


@pytest.mark.parametrize("script", ["submit_sdk.py", "submit_celery.py"])
def test_without_what_it_needs_a_sample_says_how_it_is_called(stack: LocalStack, script: str) -> None:
    env = {**os.environ, **stack.settings_env}
    command = [sys.executable, script, "alone"]
    done = subprocess.run(command, env=env, cwd=SAMPLES, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"python {script} DATASET" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_sdk_sample_says_what_is_wrong_with_a_dataset(stack: LocalStack) -> None:
    env = {**os.environ, **stack.settings_env}
    command = [sys.executable, "submit_sdk.py", "/nope", "A-1"]
    done = subprocess.run(command, env=env, cwd=SAMPLES, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "dataset: " in done.stderr
    assert "Traceback" not in done.stderr


def test_the_sdk_sample_takes_images_and_may_be_repeated(stack: LocalStack, queue: FineTuneQueue, images: Path) -> None:
    first = run(stack, sys.executable, "submit_sdk.py", str(images), "A-7")
    assert run(stack, sys.executable, "submit_sdk.py", str(images), "A-7") == first
    succeeded(queue, first)


def test_another_language_submits_and_reacts_by_commands_of_redis_alone(
    stack: LocalStack, queue: FineTuneQueue, dataset: str
) -> None:
    """As docs/contract/README.md tells it, and as the Node sample does it."""
    message = json.loads((DOCS / "contract/messages/finetune.run.json").read_text("utf-8"))
    job_id = str(uuid.uuid4())
    message["body"][0] = [sample(dataset=dataset, reply_to=["stream://from-elsewhere"])]
    message["body"] = base64.b64encode(json.dumps(message["body"]).encode()).decode()
    message["headers"] = {"task": message["headers"]["task"], "id": job_id}
    message["properties"]["delivery_tag"] = str(uuid.uuid4())
    with redis.Redis.from_url(stack.settings.finetune_redis_url, decode_responses=True) as client:
        client.xgroup_create("from-elsewhere", "orders", id="0", mkstream=True)
        client.lpush(queue_lists(QUEUE)[ACCEPT], json.dumps(message))
        weights = succeeded(queue, job_id)
        events: list[dict[str, Any]] = []

        def read_on() -> bool:
            for _, entries in client.xreadgroup("orders", "me", {"from-elsewhere": ">"}, block=1000):
                events.extend(json.loads(fields["event"]) for _, fields in entries)
            return any(event["type"].endswith(".succeeded.v1") for event in events)

        until(read_on, seconds=SECONDS)
    assert (events[-1]["subject"], events[-1]["data"]["weights"]["url"]) == (job_id, weights)


@pytest.mark.node
def test_node_submits_and_reacts(stack: LocalStack, queue: FineTuneQueue, dataset: str) -> None:
    weights = succeeded(queue, run(stack, "node", "submit.mjs", dataset, "B-1"))
    consumer = program(stack, "node", "consume.mjs")
    try:
        consumer.wait_for_line(lambda line: line == f"order B-1: weights at {weights}", timeout=SECONDS)
        # Another job while it runs, and the first one's events again: only the new ones are worked on.
        redelivered = queue.redeliver(queue_job(queue, "B-1"))
        assert redelivered == 1
        other = succeeded(queue, run(stack, "node", "submit.mjs", dataset, "B-2"))
        consumer.wait_for_line(lambda line: line == f"order B-2: weights at {other}", timeout=SECONDS)
    finally:
        consumer.stop(grace=5)
    assert sum("order B-1" in line for line in consumer.lines()) == 1


def queue_job(queue: FineTuneQueue, order: str) -> str:
    return next(job.id for job in queue.list(labels={"order": order}))


@pytest.mark.node
def test_node_checks_signatures(stack: LocalStack, queue: FineTuneQueue, dataset: str) -> None:
    receiver = program(stack, "node", "webhook.mjs", FINETUNE_SIGNING_SECRET=SECRET)
    try:
        line = receiver.wait_for_line(lambda line: line.startswith("listening on"), timeout=SECONDS)
        url = f"http://127.0.0.1:{line.split()[-1]}/hook"
        assert requests.post(url, data=b"{}", timeout=5).status_code == 401
        forged = {"webhook-id": "x", "webhook-timestamp": str(int(time.time())), "webhook-signature": "v1,AAAA"}
        assert requests.post(url, data=b"{}", headers=forged, timeout=5).status_code == 401
        job = queue.submit(sample(dataset=dataset, reply_to=[f"{url}?events=succeeded"])).wait(SECONDS)
        receiver.wait_for_line(lambda line: line.endswith(" succeeded") and line.startswith(job.id), timeout=SECONDS)
    finally:
        receiver.stop(grace=5)
