"""Deliveries without Celery's processes: real Valkey, real receivers over sockets, the notifier's parts called here."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from finetune_queue.messaging import producer_app
from finetune_queue.settings import load_settings
from finetune_worker.container import Container
from support.sinks import SECRET, Deliveries, MakeDeliveries


@pytest.fixture
def make(redis_url: str, client: redis.Redis, tmp_path: Path) -> Iterator[MakeDeliveries]:
    """Make a worker's container, with settings as environment variables."""
    built: list[Container] = []

    def build(**settings: str) -> Deliveries:
        values = {
            "SEGMIND_API_KEY": "SG_0123456789abcdef",
            "SEGMIND_BASE_URL": "http://127.0.0.1:9",  # loopback, so that sinks may be there too
            "FINETUNE_REDIS_URL": redis_url,
            "FINETUNE_ARTIFACT_URL": f"file://{tmp_path}/artifacts",
            "FINETUNE_BACKOFF_BASE": "0.05",
            "FINETUNE_BACKOFF_MAX": "0.2",
            "FINETUNE_LEASE": "20",
            "FINETUNE_SIGNING_SECRET": SECRET,
        }
        found = load_settings(values | settings, worker=True)
        app = producer_app(found)
        container = Container.build(found, app)
        container.outbox.announce(container.sinks.own)
        built.append(container)
        return Deliveries(container, client)

    yield build
    for container in built:
        container.close()
