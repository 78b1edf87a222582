"""A database, a worker that may die and one that recovers: what a test of a crash needs, several side by side."""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import redis

from finetune_queue.contract import JobRecord
from finetune_queue.messaging import producer_app
from finetune_queue.sdk import FineTuneQueue
from finetune_queue.settings import Settings
from finetune_queue.store import keys
from finetune_worker.container import Container
from segmind_sandbox.testing import LiveSandbox
from support.consistency import wrong_with_success
from support.driver import Driver
from support.mortal import Mortals
from support.samples import sample

SECONDS = 20
"""How long a recovery may take on a machine that has other things to do."""


class Lane:
    """One database of a Valkey, with the settings of its workers: short leases, short everything."""

    def __init__(self, sandbox: LiveSandbox, redis_url: str, folder: Path, dataset: Path, mortals: Mortals) -> None:
        self.sandbox = sandbox
        self.folder = folder
        self._dataset = dataset
        self._mortals = mortals
        self.values: dict[str, Any] = {
            "segmind_api_key": sandbox.api_key,
            "segmind_base_url": sandbox.base_url,
            "segmind_rate_limit": "1000/1",
            "segmind_connect_timeout": 1,
            "segmind_read_timeout": 1,
            "segmind_call_timeout": 1,
            "finetune_settle_time": 1.1,
            "finetune_redis_url": redis_url,
            "finetune_artifact_url": f"file://{folder}/artifacts",
            "finetune_staging_url": f"file://{folder}/staging",
            "finetune_lease": 0.3,
            "finetune_handover": 0.2,
            "finetune_poll_min_interval": 0.05,
            "finetune_backoff_base": 0.05,
            "finetune_backoff_max": 0.2,
        }
        self.settings = Settings(**self.values)
        self.container = Container.build(self.settings, producer_app(self.settings))
        self.redis = redis.Redis.from_url(redis_url, decode_responses=True, socket_timeout=10)

    def close(self) -> None:
        self.container.close()
        self.redis.close()

    def start(self, **request: Any) -> dict[str, Any]:
        """Empty the lane and return a new request, whose name tells its training from all others."""
        self.redis.flushdb()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.container.presence.announce()
        key = uuid.uuid4().hex
        return sample(name=f"face-{key}", idempotency_key=key, dataset=str(self._dataset), **request)

    def crash(self, request: dict[str, Any], die_at: str | None) -> list[str] | None:
        """Run a worker until the job ended or it died, see :meth:`Mortals.run`."""
        return self._mortals.run(self.values, request, die_at=die_at)

    def recover(self, request: dict[str, Any]) -> JobRecord:
        """Go on as a producer that asks again and a worker that finds the job by its deadline."""
        driver = Driver(self.container)
        with FineTuneQueue(self.settings, messenger=driver.post) as queue:  # type: ignore[arg-type]
            job_id = queue.submit(request).id
        return driver.until_ended(job_id, seconds=SECONDS)

    def check(self, job: JobRecord) -> Iterator[str]:
        """Yield what is wrong with a job that should have succeeded, and with what is kept of it."""
        yield from wrong_with_success(job, self.container.jobs.events(job.id), self.sandbox.control.trainings())
        if job.weights is None:
            return
        beside = sorted(path.name for path in Path(urlsplit(job.weights.url).path).parent.iterdir())
        if beside != ["manifest.json", "weights.safetensors"]:
            yield f"beside its weights lie {beside}"
        left = {
            "deadlines": self.redis.zcard(keys.deadlines()),
            "the waiting room": self.redis.zcard(keys.room("default")),
            "the tracked": self.redis.zcard(keys.tracked("default")),
        }
        yield from (f"it is still in {where}" for where, count in left.items() if count)
        if self.redis.hgetall(keys.owners()) != {job.finetune_id: job.id}:
            yield "its training has another owner"
        rows: Any = self.redis.xrange(keys.events())
        if [fields["event"] for _, fields in rows] != self.redis.lrange(keys.job_events(job.id), 0, -1):
            yield "the stream has other events than the job"


@contextmanager
def open_lanes(count: int, sandbox: LiveSandbox, redis_url: str, folder: Path, dataset: Path) -> Iterator[list[Lane]]:
    """Open that many lanes on the databases from 1 of a server."""
    with ExitStack() as opened:
        lanes: list[Lane] = []
        for number in range(count):
            url = f"{redis_url.removesuffix('/0')}/{number + 1}"
            mortals = opened.enter_context(Mortals(folder / f"mortals{number}"))
            lane = Lane(sandbox, url, folder / f"lane{number}", dataset, mortals)
            lanes.append(opened.enter_context(closing(lane)))
        yield lanes
