"""A worker's stages called one by one, on a real Valkey and a real sandbox."""

import io
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import requests

from finetune_queue.contract import JobError, JobRecord, JobState, new_job_id
from finetune_queue.settings import Settings
from finetune_queue.store import Change, keys
from finetune_worker.container import Container
from finetune_worker.stages import sweep as sweeps
from finetune_worker.stages.conclude import StageResult
from finetune_worker.stages.runner import run_stage
from finetune_worker.tasks import STAGES
from segmind_sandbox.testing import LiveSandbox
from support.samples import sample_request
from support.until import until


def make_settings(sandbox: LiveSandbox, redis_url: str, folder: Path, **fields: Any) -> Settings:
    values: dict[str, Any] = {
        "segmind_api_key": sandbox.api_key,
        "segmind_base_url": sandbox.base_url,
        "segmind_rate_limit": "50/60",
        "segmind_connect_timeout": 1,
        "segmind_read_timeout": 1,
        "segmind_call_timeout": 2,
        "finetune_settle_time": 3,
        "finetune_redis_url": redis_url,
        "finetune_artifact_url": f"file://{folder}/artifacts",
        "finetune_staging_url": f"file://{folder}/staging",
        "finetune_dataset_roots": str(folder),
        "finetune_poll_min_interval": 0.1,
        "finetune_backoff_base": 0.1,
        "finetune_backoff_max": 1,
    }
    return Settings(**values | fields)


def _smallest_zip() -> bytes:
    """Return a ZIP that the sandbox trains on: it has one file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("1.txt", "a caption")
    return buffer.getvalue()


def sweep(container: Container, account: str) -> str:
    """Sweep the account as if that were due."""
    container.accounts._redis.hset(keys.account(account), "sweep_at", 0)
    return sweeps.sweep(container, account)


class Bench:
    """Puts jobs in front of a stage and runs it."""

    def __init__(self, container: Container, sandbox: LiveSandbox) -> None:
        self.container = container
        self.sandbox = sandbox

    def job(self, **request: Any) -> JobRecord:
        """Return a job that was just accepted."""
        job, _ = self.container.jobs.register(new_job_id(), sample_request(**request), delay=60)
        return job

    def submitting(self, *, passed_through: bool = False, **request: Any) -> JobRecord:
        """Return a job that is to be submitted, its dataset in the sandbox's storage."""
        jobs, job = self.container.jobs, self.job(**request)
        job = jobs.transition(job, Change(delay=60), to=JobState.UPLOADING)
        name = "shared" if passed_through else job.id
        upload = self.container.segmind("default").presign_upload(name)
        headers = {"Content-Type": "application/zip", "x-amz-acl": "public-read"}
        url = upload.presigned_url.get_secret_value()
        requests.put(url, data=_smallest_zip(), headers=headers, timeout=5).raise_for_status()
        return jobs.transition(job, Change(delay=60), to=JobState.SUBMITTING, dataset_url=upload.s3_url)

    def downloading(self, **request: Any) -> JobRecord:
        """Return a job whose training is over and whose weights are not fetched yet."""
        self.sandbox.control.change_settings(list_carries_weights_url=True)
        job = self.submitting(**request)
        self.run(job)
        self.until_trained()
        sweep(self.container, "default")
        assert self.read(job).state is JobState.DOWNLOADING
        return self.read(job)

    def change_settings(self, **fields: Any) -> None:
        """Have the stages, and not the API's client, go by other settings."""
        settings = self.container.settings.model_copy(update=fields)
        self.container = replace(self.container, settings=settings)

    def run(self, job: JobRecord) -> StageResult:
        """Run the stage that has to act on the job now."""
        job = self.container.jobs.get(job.id)
        return run_stage(self.container, job.stage, STAGES[job.stage], job.id, "task-1")

    def read(self, job: JobRecord) -> JobRecord:
        """Return the job as it is now."""
        return self.container.jobs.get(job.id)

    def error(self, job: JobRecord) -> JobError:
        """Return what went wrong with the job."""
        error = self.read(job).error
        assert error is not None
        return error

    def finetune_id(self, job: JobRecord) -> str:
        """Return the id of the job's training."""
        finetune_id = self.read(job).finetune_id
        assert finetune_id is not None
        return finetune_id

    def end_pause(self) -> None:
        """End the account's pause, so that a test need not wait for it."""
        self.container.jobs._redis.hdel(keys.account("default"), "paused_until", "probing", "probe_until")

    def due_ms(self, job: JobRecord) -> float:
        """Return when somebody has to look at the job again."""
        due = self.container.jobs._redis.zscore(keys.deadlines(), job.id)
        assert due is not None
        return due

    def let_stay(self, job: JobRecord, seconds: float) -> None:
        """Store that the job entered its state that many seconds before its last change."""
        job = self.read(job)
        self.container.jobs.transition(job, Change(delay=60), entered_ms=int(job.updated_ms - seconds * 1000))

    def until_trained(self) -> None:
        """Wait until the sandbox has no training that goes on."""
        words = {"REQUESTED", "DATA_PROCESSING", "TRAINING_INITIATED"}
        until(lambda: not words & {row["status"] for row in self.sandbox.control.trainings()}, seconds=30)

    def trained(self, count: int, **settings: Any) -> list[JobRecord]:
        """Change the sandbox's settings, submit that many jobs and return them: in training if ``settings`` give a
        ``training_seconds`` above 0, else with their trainings over."""
        self.sandbox.control.change_settings(**settings)
        jobs = [self.submitting() for _ in range(count)]
        for job in jobs:
            self.run(job)
        if not settings.get("training_seconds"):
            self.until_trained()
        return jobs

    def submits(self) -> int:
        """Return how many paid submits the sandbox accepted."""
        return sum(self.sandbox.control.report()["submits"]["by_name"].values())
