"""Which workers are there: each says so now and then, and takes itself off when it stops."""

from typing import cast

import redis

from finetune_queue.store import keys
from finetune_queue.store.clock import server_ms

GONE = 35.0
"""Seconds without a sign after which a worker counts as gone; it gives one every 10."""


class Workers:
    """The workers by the Redis server's clock."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def seen(self, name: str, version: str) -> None:
        """Say that the worker is there."""
        now = self._now()
        pipe = self._redis.pipeline(transaction=False)
        pipe.zadd(keys.workers(), {f"{version} {name}": now})
        pipe.zremrangebyscore(keys.workers(), "-inf", now - GONE)
        pipe.execute()

    def left(self, name: str, version: str) -> None:
        """Say that the worker stops."""
        self._redis.zrem(keys.workers(), f"{version} {name}")

    def alive(self) -> dict[str, str]:
        """Return the version of each worker that is there, by its name."""
        found = cast("list[str]", self._redis.zrangebyscore(keys.workers(), self._now() - GONE, "+inf"))
        rows = (member.partition(" ") for member in found)
        return {name: version for version, _, name in rows}

    def _now(self) -> float:
        return server_ms(self._redis) / 1000
