"""A database, a worker that may die and one that recovers: what a test of a crash needs, several side by side."""

import hashlib
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import redis

from finetune_queue.contract import EventType, JobRecord, JobState
from finetune_queue.messaging import producer_app
from finetune_queue.sdk import FineTuneQueue
from finetune_queue.settings import Settings
from finetune_queue.store import keys
from finetune_worker.container import Container
from segmind_sandbox.testing import LiveSandbox
from segmind_sandbox.weights import Weights
from support.driver import Driver
from support.mortal import Mortals
from support.samples import sample

SECONDS = 20
"""How long a recovery may take on a machine that has other things to do."""

_ENDS = {EventType.SUCCEEDED, EventType.FAILED, EventType.CANCELLED}


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
        self.container.announce_accounts()
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

    def check(self, request: dict[str, Any], job: JobRecord) -> Iterator[str]:
        """Yield what is wrong with a job that should have succeeded, with one training, once."""
        if job.state is not JobState.SUCCEEDED:
            yield f"it ended as {job.state}: {job.error} {job.evidence}"
            return
        trainings = [row for row in self.sandbox.control.trainings() if row["name"] == request["name"]]
        if len(trainings) != 1:
            yield f"it was submitted {len(trainings)} times"
            return
        events = self.container.jobs.events(job.id)
        yield from self._check_events(job, events)
        assert job.weights is not None
        stored = Path(urlsplit(job.weights.url).path)
        body = stored.read_bytes()
        made = Weights(trainings[0]["model_id"], 0, self.sandbox.settings.weights_bytes).digests()
        if (hashlib.md5(body).hexdigest(), hashlib.sha256(body).hexdigest()) != (made.md5, job.weights.sha256):
            yield "its weights are not those of the training"
        if sorted(path.name for path in stored.parent.iterdir()) != ["manifest.json", "weights.safetensors"]:
            yield f"beside its weights lie {[path.name for path in stored.parent.iterdir()]}"
        left = {
            "deadlines": self.redis.zcard(keys.deadlines()),
            "the waiting room": self.redis.zcard(keys.room("default")),
            "the tracked": self.redis.zcard(keys.tracked("default")),
        }
        yield from (f"it is still in {where}" for where, count in left.items() if count)
        if self.redis.hgetall(keys.owners()) != {job.finetune_id: job.id}:
            yield "its training has another owner"

    def _check_events(self, job: JobRecord, events: list[Any]) -> Iterator[str]:
        if [event.id for event in events] != [f"{job.id}-{number + 1}" for number in range(job.event_seq)]:
            yield f"its events are numbered {[event.id for event in events]}"
        rows: Any = self.redis.xrange(keys.events())
        if [fields["event"] for _, fields in rows] != self.redis.lrange(keys.job_events(job.id), 0, -1):
            yield "the stream has other events than the job"
        ends = [event.kind for event in events if event.kind in _ENDS]
        if ends != [EventType.SUCCEEDED]:
            yield f"it ended with the events {ends}"


@contextmanager
def open_lanes(count: int, sandbox: LiveSandbox, redis_url: str, folder: Path, dataset: Path) -> Iterator[list[Lane]]:
    """Open that many lanes on the databases from 1 of a server."""
    lanes: list[Lane] = []
    mortals: list[Mortals] = []
    try:
        for number in range(count):
            url = f"{redis_url.removesuffix('/0')}/{number + 1}"
            starter = Mortals(folder / f"mortals{number}").__enter__()
            mortals.append(starter)
            lanes.append(Lane(sandbox, url, folder / f"lane{number}", dataset, starter))
        yield lanes
    finally:
        for lane in lanes:
            lane.close()
        for starter in mortals:
            starter.__exit__(None, None, None)
