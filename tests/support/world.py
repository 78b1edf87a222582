"""A queue with its workers' parts on a real Valkey, in a time of the test's own, and a Segmind that stands in."""

from pathlib import Path
from typing import Any

import pytest
import redis

from finetune_queue.messaging import producer_app
from finetune_queue.sdk import FineTuneQueue
from finetune_queue.settings import Settings
from finetune_worker import loops
from finetune_worker.container import Container
from support.images import make_dataset_zip
from support.simulation import CALL_TIMEOUT, Clock, Interruption, Segmind

CALLS, WINDOW = 5, 60
SETTLE = 150.0


class World:
    """One queue with its workers' parts, used for one example after the other."""

    def __init__(self, url: str, folder: Path) -> None:
        self.client: Any = redis.Redis.from_url(url, decode_responses=True, socket_timeout=10)
        self.clock = Clock(self.client)
        self.points = Interruption(self.clock)
        self.dataset = make_dataset_zip(folder / "faces.zip", count=1, size=(512, 512))
        self.settings = Settings(
            segmind_api_key="SG_0123456789abcdef",
            segmind_rate_limit=f"{CALLS}/{WINDOW}",
            segmind_call_timeout=CALL_TIMEOUT,
            finetune_settle_time=SETTLE,
            finetune_redis_url=url,
            finetune_artifact_url=f"file://{folder}/artifacts",
            finetune_dataset_roots=str(folder),
        )

    def open(self, patch: pytest.MonkeyPatch) -> None:
        self.clock.rule(patch)
        patch.setattr(loops, "LONGEST_SLEEP", 3600.0)  # a wake-up that never comes must not be made up for
        self.container = Container.build(self.settings, producer_app(self.settings))
        self.queue = FineTuneQueue(self.settings)
        self.points.patch(patch.setattr)
        self.patch = patch

    def begin(self) -> Segmind:
        """Empty it and return a Segmind of its own."""
        self.client.flushdb()
        self.clock.reset()
        segmind = Segmind(self.clock, self.points)
        segmind.stand_in(self.patch)
        self.container._clients["default"] = segmind  # type: ignore[assignment]
        self.container.presence.announce()
        return segmind

    def close(self) -> None:
        self.container.close()
        self.queue.close()
        self.client.close()
