"""Ways to die: a real worker with a job in each of its stages is killed, stopped, or told to go."""

import os
import signal
import time
from collections.abc import Iterator

import pytest

from finetune_queue.local.processes import Child
from finetune_queue.local.stack import LocalStack
from finetune_queue.sdk import Job
from support.hard_times import SANDBOX, SECONDS, SETTINGS, HardTimes, PromptStack
from support.until import until

pytestmark = pytest.mark.long

WAYS = [signal.SIGKILL, signal.SIGTERM, *([signal.SIGQUIT] if os.environ.get("FAULTS") == "all" else [])]
STAGES = ("download", "sweep", "upload", "submit")

GRACE = 12.0
"""Seconds: the shutdown time-out of these workers, one call, and a busy machine."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    folder = tmp_path_factory.mktemp("deaths")
    with PromptStack(folder, workers=1, rate_limit="200/1", sandbox=SANDBOX, settings=SETTINGS) as running:
        yield running


@pytest.fixture
def worker(stack: LocalStack) -> Child:
    """The only worker that runs."""
    return stack.workers[-1] if stack.workers[-1].running else replace(stack)


def replace(stack: LocalStack) -> Child:
    return stack.start_worker(f"worker{len(stack.workers) + 1}")


@pytest.mark.parametrize("how", WAYS, ids=lambda how: how.name)
def test_a_worker_with_a_job_in_each_stage_ends(times: HardTimes, worker: Child, how: signal.Signals) -> None:
    with times.held(*STAGES) as jobs:
        asked = time.monotonic()
        worker.send_signal(how)
        worker.wait(timeout=SECONDS)
        took = time.monotonic() - asked
    replace(times.stack)
    times.check(*jobs)
    # What stands still in a call is waited for no longer than the grace period, then left to its deadline.
    assert took < GRACE


def test_a_worker_that_stood_still_beyond_its_lease_writes_nothing_when_it_wakes(
    times: HardTimes, worker: Child
) -> None:
    with times.held(*STAGES) as jobs:
        until(lambda: stands_still(worker, jobs, claims=3), seconds=SECONDS)
    try:
        replace(times.stack)
        times.check(*jobs)
        before = [job.record for job in jobs]
        told = len(worker.lines())
    finally:
        worker.send_signal(signal.SIGCONT)

    # Its upload, its submit and its download come back to jobs that went on without it.
    until(lambda: sum("claim_lost" in line for line in worker.lines()[told:]) >= 3, seconds=SECONDS)
    times.check(*jobs)
    assert [job.refresh().record for job in jobs] == before
    worker.kill()


def stands_still(worker: Child, jobs: list[Job], *, claims: int) -> bool:
    """Stop the worker, unless it has fewer claims than that: what is held is tried again and again, and between two
    tries there is no claim to lose."""
    worker.send_signal(signal.SIGSTOP)
    if sum(bool(job.refresh().record.owner) for job in jobs) == claims:
        return True
    worker.send_signal(signal.SIGCONT)
    return False


def test_connections_to_redis_are_killed_while_every_stage_runs(times: HardTimes, worker: Child) -> None:
    with times.held(*STAGES) as jobs:
        for kind in ("normal", "pubsub"):
            times.redis.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
    times.check(*jobs)
    assert worker.running


def test_a_rolling_restart_under_load_is_not_noticed(times: HardTimes, worker: Child) -> None:
    other = replace(times.stack)
    told = {child: len(child.lines()) for child in (worker, other)}
    jobs = [times.submit() for _ in range(8)]
    for old in (worker, other):
        old.send_signal(signal.SIGTERM)
        told[replace(times.stack)] = 0
        jobs += [times.submit() for _ in range(4)]
        old.wait(timeout=SECONDS)
    times.check(*jobs)
    # Nobody's lease had to run out: what was running ended, or was given back.
    said = [line for child, before in told.items() for line in child.lines()[before:] if "lease_expired" in line]
    assert said == []
    times.stack.workers[-1].kill()
