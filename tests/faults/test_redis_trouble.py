"""Redis in trouble under real workers: they come back by themselves, and submit nothing that they cannot record."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from finetune_queue.errors import QueueUnavailableError
from finetune_queue.local.processes import Child
from finetune_queue.local.stack import LocalStack
from finetune_queue.local.valkey import ValkeyServer, free_port
from finetune_queue.sdk import Job
from support.hard_times import SANDBOX, SECONDS, SETTINGS, HardTimes, PromptStack
from support.until import until

pytestmark = pytest.mark.long

BLOCKED = 31.0 if os.environ.get("FAULTS") == "all" else 3.0
"""Seconds; the longer time is beyond all time-outs of the workers."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    folder, port = tmp_path_factory.mktemp("trouble"), free_port()
    broker = {"FINETUNE_BROKER_URL": f"redis://127.0.0.1:{port}/1"}
    running = PromptStack(folder, workers=2, rate_limit="200/1", sandbox=SANDBOX, settings={**SETTINGS, **broker})
    running.valkey = ValkeyServer(folder / "valkey", port=port)
    with running:
        yield running


@pytest.fixture
def jobs(stack: LocalStack, times: HardTimes) -> Iterator[list[Job]]:
    """Jobs that are on their way when the trouble comes; all must have succeeded once it is over."""
    workers = [worker.pid for worker in stack.workers]
    found = [times.submit() for _ in range(4)]
    yield found
    assert [worker.pid for worker in stack.workers if worker.running] == workers
    found += [times.submit()]
    times.check(*found)
    assert [worker.pid for worker in stack.workers if worker.running] == workers
    until(lambda: all(map(goes_on, stack.workers)), seconds=SECONDS)
    said = [line for worker in stack.workers for line in worker.lines()]
    assert [line for line in said if "raised unexpected" in line or "Traceback" in line] == []


def goes_on(worker: Child) -> bool:
    """Return whether the worker has not only jobs, but loops that met no trouble in their latest round."""
    for loop in ("loop=dispatcher", "loop=notifier"):
        said = [line for line in worker.lines() if loop in line and ("loop_waits" in line or "loop_goes_on" in line)]
        if said and "loop_goes_on" not in said[-1]:
            return False
    return True


def until_noticed(worker: Child, told: int) -> None:
    """Return once the worker has said, after ``told`` lines, that it cannot go on."""
    until(lambda: any("loop_waits" in line for line in worker.lines()[told:]), seconds=SECONDS)


def test_the_server_dies_and_comes_back_with_its_log(stack: LocalStack, times: HardTimes, jobs: list[Job]) -> None:
    with times.held("upload") as [held]:
        stack.valkey.kill()
    with pytest.raises(QueueUnavailableError):
        times.submit()
    until(lambda: bool(logged(stack, held, "stage_interrupted")), seconds=SECONDS)
    stack.valkey.start()
    jobs.append(held)
    [said] = logged(stack, held, "stage_interrupted")
    assert (said["level"], said["stage"]) == ("warning", "upload")
    assert "by its deadline" in said["next"]
    until(lambda: bool(logged(stack, held, "lease_expired")), seconds=SECONDS)
    [said] = logged(stack, held, "lease_expired")
    assert (said["redis_was_away"], said["takeovers"]) == (True, 0)


def logged(stack: LocalStack, job: Job, event: str) -> list[dict[str, Any]]:
    """Return what the workers logged of the job under the event's name."""
    said = (json.loads(line) for each in stack.workers for line in each.lines() if event in line)
    return [line for line in said if line["event"] == event and line["job_id"] == job.id]


def test_the_server_does_not_answer_for_a_while(stack: LocalStack, times: HardTimes, jobs: list[Job]) -> None:
    server = stack.valkey.process
    server.send_signal(signal.SIGSTOP)
    threading.Event().wait(BLOCKED)  # the sandbox goes on: what it accepted meanwhile must be found again
    server.send_signal(signal.SIGCONT)


@pytest.mark.parametrize(
    ("trouble", "over"),
    [
        (("CONFIG", "SET", "maxmemory", 1), ("CONFIG", "SET", "maxmemory", 0)),
        (("REPLICAOF", "127.0.0.1", 1), ("REPLICAOF", "NO", "ONE")),
    ],
    ids=["full", "replica"],
)
def test_the_server_refuses_all_writes(
    stack: LocalStack, times: HardTimes, jobs: list[Job], trouble: tuple[str, ...], over: tuple[str, ...]
) -> None:
    told = {worker: len(worker.lines()) for worker in stack.workers}
    times.redis.execute_command(*trouble)
    try:
        for worker, lines in told.items():
            until_noticed(worker, lines)
        with pytest.raises(QueueUnavailableError):
            times.submit()
    finally:
        times.redis.execute_command(*over)


def test_the_broker_s_database_is_emptied_again_and_again(times: HardTimes, jobs: list[Job]) -> None:
    with times.redis.client() as broker:
        broker.execute_command("SELECT", 1)
        for job in jobs:
            broker.flushdb()
            version = job.refresh().record.version
            until(partial(has_moved, job, version), seconds=SECONDS)
        broker.flushdb()


def has_moved(job: Job, version: int) -> bool:
    return job.done or job.refresh().record.version > version
