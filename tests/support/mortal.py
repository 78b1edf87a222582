"""Workers that die at a chosen call: each forked, so in milliseconds, from a process that has everything imported.

Run as a program it is that process: it reads one JSON object a line, forks a worker for each, waits for its death and
answers with its exit code and, of one that lived, the points that it passed.
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any, Self

from finetune_queue.contract import JobRecord, JobState, Stage
from finetune_queue.logs import configure_logging
from finetune_queue.messaging import producer_app
from finetune_queue.sdk import FineTuneQueue
from finetune_queue.settings import Settings
from finetune_worker.container import Container
from finetune_worker.stages import calls, submit, sweep, upload
from finetune_worker.stages.conclude import StageResult
from support.driver import Driver, Message, WatchedPost
from support.points import DIED, Points

_PATIENCE = 30
"""Seconds after which a worker that neither ended nor died is killed."""


class Mortals:
    """Starts workers that die, as a context manager. Not for threads: each has its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None

    def run(self, settings: dict[str, Any], request: dict[str, Any], *, die_at: str | None = None) -> list[str] | None:
        """Work on a request until its job has ended; returns the points passed, or None if it died at ``die_at``."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        points = self._folder / "points.json"
        task = {"settings": settings, "request": request, "die_at": die_at, "points": str(points)}
        process.stdin.write(json.dumps(task) + "\n")
        process.stdin.flush()
        code = int(process.stdout.readline())
        if code == DIED:
            return None
        if code != 0:
            message = f"the worker ended with code {code}, see {self._folder / 'log'}"
            raise AssertionError(message)
        found: list[str] = json.loads(points.read_text())
        return found

    def __enter__(self) -> Self:
        self._folder.mkdir()
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "support.mortal"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "TMPDIR": str(self._folder), "PYTHONPATH": os.pathsep.join(sys.path)},
            )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        with self._process as process:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(_PATIENCE)


class _Worker(Driver):
    def __init__(self, container: Container, points: Points) -> None:
        super().__init__(container, post=WatchedPost(points.reach), name="mortal")
        self._points = points

    def deliver(self, message: Message) -> str:
        self._points.part = "sweep" if message.sweep else "run"
        return super().deliver(message)

    def run_presign(self, job_id: str) -> StageResult:
        self._points.part = "presign"
        return super().run_presign(job_id)

    def run_stage(self, stage: Stage, job_id: str) -> StageResult:
        self._points.part = str(stage)
        return super().run_stage(stage, job_id)

    def work(self, job_id: str) -> None:
        """Work until the job has ended."""
        while True:
            job = self._look(job_id)
            if job.state.terminal:
                return
            # Passes of an idle dispatcher are all the same, and how many there are is a matter of time.
            self._points.part = f"dispatch while {job.state}"
            self.step()

    def _look(self, job_id: str) -> JobRecord:
        with self._points.unwatched():
            job = self.container.jobs.get(job_id)
            while job.state is JobState.TRAINING and not self._trained(job):
                time.sleep(0.005)
            time.sleep(0.005)
        return job

    def _trained(self, job: JobRecord) -> bool:
        url = f"{self.container.settings.segmind_base_url}/_sandbox/trainings"
        with urllib.request.urlopen(url, timeout=5) as reply:
            trainings: list[dict[str, Any]] = json.load(reply)["trainings"]
        mine = [row for row in trainings if row["finetune_id"] == job.finetune_id]
        return all(row["status"] == "AVAILABLE" for row in mine)


def _live(task: dict[str, Any]) -> None:
    signal.alarm(_PATIENCE)
    settings = Settings(**task["settings"])
    configure_logging(settings)
    # It dies at once or calls at once: those who recover need not wait for a call that began late.
    for module in (calls, upload, submit, sweep):
        module.longest_call = lambda _: 0.0  # type: ignore[attr-defined]
    sweep.ACTING = 1.0
    points = Points(task["die_at"])
    container = Container.build(settings, producer_app(settings))
    container.presence.announce()
    worker = _Worker(container, points)
    points.patch()
    points.audit()
    points.part = "client"
    queue = FineTuneQueue(settings, messenger=worker.post)  # type: ignore[arg-type]
    worker.work(queue.submit(task["request"]).id)
    if points.missed:
        message = f"no point stands for {points.missed}"
        raise AssertionError(message)
    with points.unwatched():
        Path(task["points"]).write_text(json.dumps(points.reached))


def main() -> None:
    for line in sys.stdin:
        task = json.loads(line)
        child = os.fork()
        if child == 0:
            os.dup2(2, 1)  # the answers' way is not the child's
            try:
                _live(task)
                sys.stderr.flush()
            except BaseException:  # noqa: BLE001 - the child ends here, whatever it met
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
