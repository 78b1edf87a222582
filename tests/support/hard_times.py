"""Jobs held in each stage by a slow sandbox, and what must hold of jobs in the end, for tests with real workers."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import redis

from finetune_queue.contract import JobState, derived_job_id
from finetune_queue.local.stack import LocalStack
from finetune_queue.sdk import FineTuneQueue, Job
from finetune_queue.store import keys
from segmind_sandbox.testing import SandboxControl
from support.consistency import wrong_with_success
from support.other_stack import OtherStack
from support.samples import sample
from support.until import until

SECONDS = 60
"""How long anything may take on a machine that has other things to do."""

LEASE = 2.0

SETTINGS = {
    "FINETUNE_LEASE": str(LEASE),
    "FINETUNE_HANDOVER": "1",
    "FINETUNE_POLL_MIN_INTERVAL": "0.2",
    "FINETUNE_BACKOFF_BASE": "0.2",
    "FINETUNE_BACKOFF_MAX": "1",
    "FINETUNE_MAX_ATTEMPTS": "20",
    "FINETUNE_SHUTDOWN_TIMEOUT": "3",
    "FINETUNE_LOG_FORMAT": "json",
    "SEGMIND_READ_TIMEOUT": "3.5",
    "SEGMIND_CALL_TIMEOUT": "3.5",
    "FINETUNE_SETTLE_TIME": "4",
}
"""Short leases and time-outs, so that a recovery takes seconds."""

SANDBOX = {"SANDBOX_TRAINING_SECONDS": "0.3", "SANDBOX_WEIGHTS_BYTES": "65536", "SANDBOX_LIST_CARRIES_WEIGHTS_URL": "1"}

HOLD = 2.5
"""Seconds for which the sandbox holds a call: less than the call's time-out."""


class PromptStack(OtherStack):
    """One whose workers hold a job for no call that begins late."""

    application = "support.prompt_worker"


class HardTimes:
    """Submits jobs to a stack and holds them where they are."""

    def __init__(self, stack: LocalStack, control: SandboxControl, dataset: Path) -> None:
        self.stack = stack
        self.control = control
        self._dataset = dataset
        self.queue = FineTuneQueue(stack.settings)
        self.redis: Any = redis.Redis.from_url(stack.valkey.url, decode_responses=True, socket_timeout=20)

    def close(self) -> None:
        self.queue.close()
        self.redis.close()

    def submit(self, key: str | None = None) -> Job:
        """Submit a job with a name of its own."""
        key = key or uuid.uuid4().hex
        return self.queue.submit(sample(name=f"face-{key}", dataset=str(self._dataset)), idempotency_key=key)

    @contextmanager
    def held(self, *stages: str) -> Iterator[list[Job]]:
        """Hold a job in each of the stages until the block ends; yields once all of them stood still there. A transfer
        gives up and comes back again and again, as silence ends it before the lease does."""
        faults: list[int] = []
        jobs: list[Job] = []
        try:
            for stage in stages:
                if stage == "sweep":  # which is a list call only if there is more than one training to see
                    jobs += [self._training_that_does_not_end() for _ in range(2)]
                key = uuid.uuid4().hex
                faults.append(self._slow_down(stage, derived_job_id("default", key)))
                if stage != "sweep":
                    jobs.append(self.submit(key))
                until(partial(self._has_fired, faults[-1]), seconds=SECONDS)
            yield jobs
        finally:
            for fault in faults:
                self.control.remove_fault(fault)
            for row in self.control.trainings():
                if row["held"]:
                    self.control.change_training(row["finetune_id"], hold=False)

    def _slow_down(self, stage: str, job_id: str) -> int:
        calls: dict[str, dict[str, Any]] = {
            "upload": {"op": "put", "match": job_id},
            "submit": {"op": "submit", "match": job_id, "processed": True},
            "sweep": {"op": "list"},
            "download": {"op": "download"},
        }
        return self.control.add_fault(kind="slow", seconds=HOLD, count=None, **calls[stage])

    def _training_that_does_not_end(self) -> Job:
        held = self.control.add_fault(op="training", kind="hold")
        job = self.submit()
        until(lambda: job.refresh().state is JobState.TRAINING, seconds=SECONDS)
        self.control.remove_fault(held)
        return job

    def _has_fired(self, number: int) -> bool:
        return any(fault["id"] == number and fault["fired"] for fault in self.control.faults())

    def check(self, *jobs: Job) -> None:
        """Wait for the jobs and fail unless each succeeded, with one training, once, and its own weights."""
        ended, trainings = [job.wait(SECONDS) for job in jobs], self.control.trainings()
        found = {job.id: list(wrong_with_success(job.record, job.events(), trainings)) for job in ended}
        wrong = {job_id: said for job_id, said in found.items() if said}
        assert wrong == {}
        left = self.redis.zcard(keys.deadlines()), self.redis.zcard(keys.room("default"))
        assert left == (0, 0)
