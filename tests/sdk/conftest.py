"""One queue on a real, empty Valkey, as a producer has it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from finetune_queue import FineTuneQueue, Settings
from support.cli import Worker


@pytest.fixture
def settings(redis_url: str, tmp_path: Path) -> Settings:
    return Settings(finetune_redis_url=redis_url, finetune_staging_url=f"file://{tmp_path}/staging")


@pytest.fixture
def queue(settings: Settings) -> Iterator[FineTuneQueue]:
    with FineTuneQueue(settings) as found:
        yield found


@pytest.fixture
def worker(client: redis.Redis) -> Worker:
    return Worker(client)
