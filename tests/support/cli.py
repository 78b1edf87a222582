"""For tests of the command line: a worker's hand on the store, and what a command left behind."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, Self

import redis

from finetune_queue.contract import EventType, JobRecord, JobState, WaitReason, new_job_id
from finetune_queue.contract.job import JobError, Progress, Stage, Weights
from finetune_queue.store import AccountLimits, Accounts, Change, JobPages, JobStore, Outbox, Rejections
from support.samples import sample_request
from support.until import until

PATH = [JobState.UPLOADING, JobState.SUBMITTING, JobState.TRAINING, JobState.DOWNLOADING, JobState.SUCCEEDED]

FIELDS: dict[JobState, dict[str, Any]] = {
    JobState.SUBMITTING: {"dataset_report": {"ok": True, "images": 8, "captions": 8, "bytes": 1_234_567}},
    JobState.TRAINING: {
        "finetune_id": "ft-1",
        "provider_status": "REQUESTED",
        "waiting_for": WaitReason.PROVIDER,
    },
    JobState.DOWNLOADING: {"provider_status": "TRAINING_COMPLETED", "waiting_for": None},
    JobState.SUCCEEDED: {
        "weights": Weights(
            url="file:///srv/weights/job/weights.safetensors",
            manifest_url="file:///srv/weights/job/manifest.json",
            bytes=4_194_304,
            sha256="ab" * 32,
            tensors=170,
        )
    },
}
"""What a job learns when it enters a state."""


class Worker:
    """Moves jobs as the stages do."""

    def __init__(self, client: redis.Redis) -> None:
        self.store = JobStore(client)
        self.accounts = Accounts(client)
        self.rejections = Rejections(client, Outbox(client))
        self._pages = JobPages(client, self.store)

    def newest(self, state: JobState | None = None) -> list[JobRecord]:
        """Return the jobs, or those in a state, the newest first."""
        return self._pages.page(state=state, limit=1000).jobs

    def accept(self, **fields: Any) -> JobRecord:
        return self.store.register(new_job_id(), sample_request(**fields), delay=600)[0]

    def bring(self, job: JobRecord, to: JobState) -> JobRecord:
        """Take the job along the usual path as far as ``to``."""
        while job.state is not to:
            following = PATH[0] if job.state is JobState.ACCEPTED else PATH[PATH.index(job.state) + 1]
            job = self.move(job, following, **FIELDS.get(following, {}))
        return job

    def move(self, job: JobRecord, to: JobState, **fields: Any) -> JobRecord:
        change = Change() if to.terminal else Change(delay=600)
        return self.store.transition(job, change, to=to, **fields)

    def note(self, job: JobRecord, *, event: EventType | None = None, **fields: Any) -> JobRecord:
        return self.store.transition(job, Change(delay=600), event=event, **fields)

    def progress(self, job: JobRecord, done: int, total: int | None) -> JobRecord:
        return self.note(job, progress=Progress(done=done, total=total))

    def fail(self, job: JobRecord, message: str = "The disk is full.") -> JobRecord:
        error = JobError(code="disk_full", stage=Stage.DOWNLOAD, message=message, action="Free some space.")
        return self.move(job, JobState.FAILED, error=error, failed_stage=Stage.DOWNLOAD)

    def park(self, job: JobRecord, reason: WaitReason, *, score: float) -> JobRecord:
        """Let the job wait in its account's room for calls."""
        return self.store.transition(job, Change(delay=600, room_score=score), waiting_for=reason)

    def announce(self, calls: int = 50, window: float = 60.0) -> None:
        self.accounts.configure("default", AccountLimits(calls=calls, window=window))


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which has to be one JSON document."""
        return json.loads(self.out)

    @property
    def json_lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def error(self) -> dict[str, Any]:
        """The JSON error on standard error, which has to be the only thing there."""
        found: dict[str, Any] = json.loads(self.err)["error"]
        return found


Run = Callable[..., Result]


class Program:
    """``finetune`` as a process of its own, whose lines are read as they come."""

    def __init__(self, *arguments: object, **variables: str) -> None:
        self.lines: list[str] = []
        self.error_lines: list[str] = []
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-c", "import sys; from finetune_queue.cli import main; sys.exit(main())"),
                *(str(argument) for argument in arguments),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **variables},
        )
        pairs = ((self._process.stdout, self.lines), (self._process.stderr, self.error_lines))
        self._readers = [threading.Thread(target=_read, args=pair, daemon=True) for pair in pairs]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._join()

    def expect(self, text: str, *, seconds: float = 30) -> str:
        """Return the first line of standard output with ``text`` in it, which has to come within ``seconds``."""
        until(lambda: any(text in line for line in self.lines), seconds=seconds)
        return next(line for line in self.lines if text in line)

    def expect_error(self, text: str, *, seconds: float = 30) -> None:
        """Wait for a line of standard error with ``text`` in it."""
        until(lambda: any(text in line for line in self.error_lines), seconds=seconds)

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self._process.send_signal(signal.SIGINT)

    def end(self, *, seconds: float = 30) -> Result:
        """Wait for it to end by itself."""
        code = self._process.wait(timeout=seconds)
        self._join()
        return Result(code, "".join(self.lines), "".join(self.error_lines))

    def _join(self) -> None:
        for reader in self._readers:
            reader.join()


def _read(stream: IO[str], lines: list[str]) -> None:
    with stream:
        lines.extend(stream)


def checks(result: Any) -> dict[str, dict[str, str]]:
    return {check["name"]: check for check in result.json["checks"]}
