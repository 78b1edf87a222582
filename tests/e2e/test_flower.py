"""What Flower sees and shows: Celery's own events of a job's stages, from real workers."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from celery.events.state import State

from finetune_queue.contract import Stage
from finetune_queue.local.processes import Child
from finetune_queue.local.stack import LocalStack
from finetune_queue.local.valkey import free_port
from finetune_queue.messaging import producer_app, stage_task
from finetune_queue.sdk import FineTuneQueue
from finetune_queue.staging import stage
from support.samples import sample
from support.until import until

SECONDS = 30
PASSWORD = "a-password-of-the-tests"
PROMPT, TRIGGER = "a prompt that nobody else may read", "HUSHWORD"


def test_every_stage_of_a_job_is_a_task_with_a_readable_result(
    queue: FineTuneQueue, images: Path, stack: LocalStack
) -> None:
    app = producer_app(stack.settings)
    seen = State()
    with app.connection_for_read() as broker:
        receiver = app.events.Receiver(broker, handlers={"*": seen.event})
        with receiver.consumer_context() as (connection, _, _):

            def look() -> None:
                with suppress(TimeoutError):
                    connection.drain_events(timeout=0.2)

            look()  # subscribes
            job = queue.submit(sample(dataset=str(images)))
            wanted = [stage_task(stage) for stage in Stage if stage is not Stage.POLL]  # for which its sweep is enough

            def tasks() -> list[Any]:
                look()
                found = [task for _, task in seen.tasks_by_timestamp() if task.args and job.id in task.args]
                return [task for task in found if task.state == "SUCCESS"]

            until(lambda: set(wanted) <= {task.name for task in tasks()}, seconds=SECONDS)
            said = {str(task.name): str(task.result) for task in tasks()}
            assert all(task.started for task in tasks()), "Flower could not tell which of them ran"
    app.close()
    assert said["finetune.upload"].startswith("'uploaded 6 images")
    assert said["finetune.publish"].startswith("'succeeded: weights at file://")


@pytest.fixture
def flower(stack: LocalStack, tmp_path: Path) -> Iterator[str]:
    """A Flower as docs/flower.md has it started: with a password, and a file for what it has seen."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    env = {**os.environ, **stack.settings_env, "FLOWER_BASIC_AUTH": f"operator:{PASSWORD}", "FLOWER_READ_ONLY": "true"}
    command = [sys.executable, "-m", "celery", "-A", "finetune_worker", "flower", "--address=127.0.0.1"]
    command += [f"--port={port}", "--persistent=True", f"--db={tmp_path}/flower.db"]
    with Child("flower", command, env=env, cwd=tmp_path, log=tmp_path / "flower.log") as child:
        child.wait_until(lambda: answers(f"{url}/healthcheck"), timeout=60)
        yield url
    # Written when it ends; by then everything of interest was seen.
    seen = b"".join(file.read_bytes() for file in tmp_path.glob("flower.db*"))
    assert b"finetune.upload" in seen
    assert PROMPT.encode() not in seen


def answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).is_success
    except httpx.TransportError:
        return False


def test_flower_asks_for_a_password_and_shows_no_prompt_and_no_key(
    flower: str, stack: LocalStack, images: Path
) -> None:
    for path in ("/", "/workers", "/tasks", "/api/tasks", "/api/workers"):
        assert httpx.get(flower + path, trust_env=False).status_code == 401, path
    with httpx.Client(base_url=flower, auth=("operator", PASSWORD), timeout=20, trust_env=False) as http:

        def tasks() -> dict[str, dict[str, Any]]:
            found: dict[str, dict[str, Any]] = http.get("/api/tasks").raise_for_status().json()
            return found

        # Its subscription to the workers' events takes a moment; each round is one more raw request.
        def raw_request_was_seen() -> bool:
            send_raw(stack, images)
            with suppress(AssertionError):
                until(
                    lambda: {"finetune.run", "finetune.upload"} <= {task["name"] for task in tasks().values()},
                    seconds=5,
                )
                return True
            return False

        until(raw_request_was_seen, seconds=40)
        pages = [http.get(path).raise_for_status().text for path in ("/api/tasks", "/api/workers?refresh=1", "/tasks")]
        pages += [http.get(f"/task/{task_id}").raise_for_status().text for task_id in tasks()]
        pages.append(http.get("/metrics").raise_for_status().text)
        runs = [task for task in tasks().values() if task["name"] == "finetune.run"]
        assert {task["args"] for task in runs} == {"(a request)"}
        shown = {task["args"] for task in tasks().values() if task["name"] != "finetune.run" and task["args"]}
        assert all(re.fullmatch(r"\('[\w-]+',\)", args) for args in shown), shown
        for secret in (PROMPT, TRIGGER, stack.worker_env["SEGMIND_API_KEY"], "X-Amz-Signature", PASSWORD):
            assert not any(secret in page for page in pages), secret
        assert 'flower_events_total{task="finetune.run"' in pages[-1]


def send_raw(stack: LocalStack, images: Path) -> None:
    """Send a whole request as a client without our package does, its representation included."""
    app = producer_app(stack.settings)
    body = sample(dataset=stage(str(images), stack.settings), instance_prompt=PROMPT, trigger_word=TRIGGER)
    app.send_task("finetune.run", args=[body], queue="finetune")
    app.close()
