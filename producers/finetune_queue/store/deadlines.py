"""Deadlines: when to look at each live job again if nothing happens. Delays, leases and recovery are all deadlines."""

import time
from collections.abc import Sequence
from typing import cast

import redis

from finetune_queue.contract.job import JobRecord
from finetune_queue.store import keys, scripts
from finetune_queue.store.accounts import transfers_of
from finetune_queue.store.clock import server_ms

_BATCH = 200

_TICK = 0.1
"""Seconds by which an idle Redis ends a blocked command late: it looks at its clock ``hz`` (10) times a second."""


class Deadlines:
    """The one sorted set of deadlines, by the Redis server's clock."""

    def __init__(self, client: redis.Redis) -> None:
        """``client`` must wait longer for a reply than :meth:`wait_for_work` is asked to sleep."""
        self._redis = client
        self._take = scripts.load(client, "take")
        self._put_off = scripts.load(client, "put_off")
        self._stay = scripts.load(client, "stay")

    def due(self, limit: int, handover: float) -> tuple[dict[str, int], float | None]:
        """Take up to ``limit`` jobs whose deadline passed; nobody else gets them for ``handover`` seconds.

        Returns for each job's id the deadline (ms) that passed, and the seconds until the next one, None without any.
        """
        wait, _, *taken = self._take([keys.deadlines()], [limit, int(handover * 1000)])
        passed = {job_id: int(float(at)) for job_id, at in zip(taken[::2], taken[1::2], strict=True)}
        return passed, None if int(wait) < 0 else int(wait) / 1000

    def now_ms(self) -> int:
        """Return the time by the Redis server's clock, as jobs have it."""
        return server_ms(self._redis)

    def soon(self, seconds: float, limit: int) -> list[str]:
        """Return up to ``limit`` jobs that are due now or within ``seconds``, the next first. Takes none of them."""
        until = self.now_ms() + int(seconds * 1000)
        return cast("list[str]", self._redis.zrangebyscore(keys.deadlines(), "-inf", until, start=0, num=limit))

    def left(self, job_id: str) -> float | None:
        """Return the seconds until the job's deadline, 0 if that passed; None without one."""
        at = self._redis.zscore(keys.deadlines(), job_id)
        return None if at is None else max(0.0, (at - self.now_ms()) / 1000)

    def put_off(self, delays: Sequence[tuple[JobRecord, float]]) -> int:
        """Move the deadlines of the given jobs to the given seconds from now; returns how many were moved.

        One that changed since it was read keeps its own deadline, which may be a worker's lease.
        """
        moved = 0
        for start in range(0, len(delays), _BATCH):
            batch = delays[start : start + _BATCH]
            args = [text for job, delay in batch for text in (str(int(delay * 1000)), job.id, str(job.version))]
            moved += self._put_off([keys.deadlines(), *(keys.job(job.id) for job, _ in batch)], args)
        return moved

    def put_off_parked(self, delays: Sequence[tuple[JobRecord, float]]) -> set[str]:
        """Move the deadlines of those of the jobs that are still in a waiting room, to the given seconds from now;
        returns their ids. It is in the room that a slot comes to them."""
        rooms = [key for job, _ in delays for key in (keys.room(job.account), keys.room(transfers_of(job.account)))]
        args = [text for job, delay in delays for text in (job.id, str(int(delay * 1000)))]
        return set(self._stay([keys.deadlines(), *rooms], args)) if delays else set()

    def wait_for_work(self, seconds: float) -> None:
        """Sleep for ``seconds``, or until there is work for a dispatcher. Work that comes in the last 0.1 s of them
        does not shorten the sleep."""
        end = time.monotonic() + seconds
        if seconds > _TICK and self._redis.blpop([keys.wake()], timeout=seconds - _TICK):
            return
        time.sleep(max(0.001, end - time.monotonic()))
