"""Who is compared: how each one's workers are started, how it is given jobs, and how its finished jobs are seen."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from celery import Celery, chain, signature

from finetune_bench.cases import OUR_POLL_MIN_INTERVAL, POLL_EVERY, Case
from finetune_queue import FineTuneQueue
from finetune_queue.settings import load_settings

THREADS = 8
"""Threads of every worker process of every contestant."""

WORKERS = Path(__file__).resolve().parents[1]
"""Where the other contestants' modules lie."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What a run gives to its contestant."""

    folder: Path
    redis_url: str
    api_url: str
    api_key: str
    dataset: Path

    @property
    def weights(self) -> Path:
        """Where finished weights go."""
        return self.folder / "weights"


class Contestant(Protocol):
    """One way to bring jobs through the API."""

    @property
    def title(self) -> str:
        """What the table calls it."""

    @property
    def finished(self) -> str:
        """The glob, under the weights' folder, of the one file that says that a job is finished."""

    def name_of(self, path: Path) -> str:
        """Return the name of the job whose such file it is."""

    def workers(self) -> list[list[str]]:
        """Return each worker process's arguments for Celery."""

    def environment(self, case: Case, ground: Ground) -> dict[str, str]:
        """Return the workers' settings."""

    def give(self, case: Case, ground: Ground) -> None:
        """Hand in all jobs of the case."""


def _worker(app: str, name: str, *more: str) -> list[str]:
    options = ["-P", "threads", "-c", str(THREADS), "-n", f"{name}@%h", "--loglevel", "INFO"]
    return ["celery", "-A", app, "worker", *options, *more]


@dataclass(frozen=True, slots=True)
class Ours:
    """finetune-queue, with its default settings but for the time scale."""

    processes: int
    finished: str = "*/manifest.json"

    @property
    def title(self) -> str:
        """See Contestant."""
        return f"finetune-queue, {self.processes} worker process{'es' if self.processes > 1 else ''}"

    def name_of(self, path: Path) -> str:
        """See Contestant."""
        return str(json.loads(path.read_text())["request"]["name"])

    def workers(self) -> list[list[str]]:
        """See Contestant."""
        return [_worker("finetune_worker", f"ours{number}") for number in range(self.processes)]

    def environment(self, case: Case, ground: Ground) -> dict[str, str]:
        """See Contestant."""
        return {
            "SEGMIND_BASE_URL": ground.api_url,
            "SEGMIND_API_KEY": ground.api_key,
            "SEGMIND_RATE_LIMIT": f"{case.calls}/{case.window:g}",
            "FINETUNE_REDIS_URL": ground.redis_url,
            "FINETUNE_ARTIFACT_URL": f"file://{ground.weights}",
            "FINETUNE_STAGING_URL": f"file://{ground.folder}/staging",
            "FINETUNE_DATASET_ROOTS": str(ground.dataset.parent),
            "FINETUNE_SECRETS_DIR": str(ground.folder / "secrets"),
            "FINETUNE_POLL_MIN_INTERVAL": f"{OUR_POLL_MIN_INTERVAL / case.scale:g}",
        }

    def give(self, case: Case, ground: Ground) -> None:
        """See Contestant."""
        with FineTuneQueue(load_settings(self.environment(case, ground))) as queue:
            for number in range(case.jobs):
                queue.submit(
                    {
                        "name": f"job-{number}",
                        "instance_prompt": "photo of 1MAN",
                        "trigger_word": "1MAN",
                        "dataset": ground.dataset.as_uri(),
                    }
                )


@dataclass(frozen=True, slots=True)
class Plain:
    """A plain Celery worker from a module of its own."""

    title: str
    module: str
    queues: tuple[str, ...] = ("celery",)
    rate_limited: bool = False
    finished: str = "*.safetensors"

    def name_of(self, path: Path) -> str:
        """See Contestant."""
        return path.stem

    def workers(self) -> list[list[str]]:
        """See Contestant."""
        return [_worker(self.module, f"{self.module}-{queue}", "-Q", queue) for queue in self.queues]

    def environment(self, case: Case, ground: Ground) -> dict[str, str]:
        """See Contestant."""
        env = {
            "PYTHONPATH": os.pathsep.join([str(WORKERS), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "SEGMIND_BASE_URL": ground.api_url,
            "SEGMIND_API_KEY": ground.api_key,
            "BENCH_REDIS_URL": ground.redis_url,
            "BENCH_DATASET": str(ground.dataset),
            "BENCH_WEIGHTS": str(ground.weights),
            "BENCH_CALLS": str(case.calls),
            "BENCH_WINDOW": str(case.window),
            "BENCH_POLL_EVERY": f"{POLL_EVERY / case.scale:g}",
        }
        if self.rate_limited:
            env["BENCH_RATE_LIMIT"] = str(case.rate)
        return env

    def give(self, case: Case, ground: Ground) -> None:
        """See Contestant."""
        app = Celery("bench", broker=ground.redis_url, set_as_current=False)
        app.conf.task_ignore_result = True
        calls, files = self.queues[0], self.queues[-1]
        for number in range(case.jobs):
            name = f"job-{number}"
            steps: Sequence[tuple[str, list[str], str]] = [
                ("presign", [name], calls),
                ("upload", [], files),
                ("submit", [name], calls),
                ("poll", [], calls),
                ("download", [name], files),
            ]
            links = [signature(task, args=args, queue=queue, app=app) for task, args, queue in steps]
            chain(*links, app=app).apply_async()
        app.close()


CONTESTANTS: Mapping[str, Contestant] = {
    "tutorial": Plain("tutorial: retry(countdown), details per job", "tutorial_worker"),
    "rate-limit": Plain("the same with Celery's rate_limit", "tutorial_worker", rate_limited=True),
    "careful": Plain("careful: shared token bucket, fitted polls", "careful_worker", ("api", "files")),
    "ours-1": Ours(1),
    "ours-2": Ours(2),
    "ours-4": Ours(4),
    "ours-8": Ours(8),
}
