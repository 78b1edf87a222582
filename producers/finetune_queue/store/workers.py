"""Which workers are there: each says so now and then, and takes itself off when it stops."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, cast

import redis

from finetune_queue.store import keys
from finetune_queue.store.clock import server_ms

GONE = 35.0
"""Seconds without a sign after which a worker counts as gone; it gives one every 10."""

_GONE_MS = int(GONE * 1000)


@dataclass(frozen=True, slots=True)
class LiveWorker:
    """A worker as it shows itself to others. ``accounts`` are those that it has a key for."""

    name: str
    version: str
    accounts: tuple[str, ...] = ()

    @property
    def member(self) -> str:
        """Its member of the sorted set."""
        return " ".join([self.version, self.name, *self.accounts])

    @classmethod
    def of_member(cls, member: str) -> Self:
        """Read a member."""
        version, name, *accounts = member.split(" ")
        return cls(name, version, tuple(accounts))


def unserved(account: str, workers: Sequence[LiveWorker]) -> bool:
    """Tell whether none of the workers that are there has the account's key. A worker of an older version does not say
    which keys it has, and so may have any."""
    return bool(workers) and all(worker.accounts and account not in worker.accounts for worker in workers)


class Workers:
    """The workers by the Redis server's clock."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def seen(self, worker: LiveWorker) -> None:
        """Say that the worker is there."""
        now = server_ms(self._redis)
        pipe = self._redis.pipeline(transaction=False)
        pipe.zadd(keys.workers(), {worker.member: now})
        pipe.zremrangebyscore(keys.workers(), "-inf", now - _GONE_MS)
        pipe.execute()

    def left(self, worker: LiveWorker) -> None:
        """Say that the worker stops."""
        self._redis.zrem(keys.workers(), worker.member)

    def alive(self) -> list[LiveWorker]:
        """Return the workers that are there."""
        found = cast("list[str]", self._redis.zrangebyscore(keys.workers(), server_ms(self._redis) - _GONE_MS, "+inf"))
        return [LiveWorker.of_member(member) for member in found]
