"""The whole store at one look: how many jobs are where, for how long, and who waits for a call."""

from dataclasses import dataclass
from typing import cast

import redis

from finetune_queue.contract.job import JobState
from finetune_queue.store import keys
from finetune_queue.store.clock import server_ms


@dataclass(frozen=True, slots=True)
class StateView:
    """The jobs in one state: how many, how many of them a worker holds, for how many seconds the oldest is in it, and
    some of them."""

    state: JobState
    count: int
    running: int
    oldest: float | None
    job_ids: list[str]


@dataclass(frozen=True, slots=True)
class StoreView:
    """The store at one moment (``at_ms``, of the Redis server's clock). ``overdue`` is by how many seconds the oldest
    deadline passed unseen: with a worker alive that is next to nothing."""

    at_ms: int
    states: list[StateView]
    dead_letters: int
    overdue: float


class Overview:
    """Looks at the store; two round trips a look."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def look(self, jobs_per_state: int = 0) -> StoreView:
        """Return the store as it is now, with up to ``jobs_per_state`` ids in each state: those that are longest in
        it, or in a state that ends a job the latest."""
        now = server_ms(self._redis)
        pipe = self._redis.pipeline(transaction=False)
        pipe.xlen(keys.dead_letters())
        pipe.zrange(keys.deadlines(), 0, 0, withscores=True)
        for state in JobState:
            index = keys.state(state)
            pipe.zcard(index)
            pipe.zcount(keys.running(state), now, "+inf")
            pipe.zrange(index, 0, 0, withscores=True)
            if jobs_per_state:
                pipe.zrange(index, 0, jobs_per_state - 1, desc=state.terminal)
        replies = iter(pipe.execute())
        dead_letters = next(replies)
        deadline = next(replies)
        states = []
        for state in JobState:
            count, running, oldest = next(replies), next(replies), next(replies)
            age = max(0.0, now - oldest[0][1]) / 1000 if oldest else None
            states.append(StateView(state, count, running, age, next(replies) if jobs_per_state else []))
        overdue = max(0.0, now - deadline[0][1]) / 1000 if deadline else 0.0
        return StoreView(now, states, dead_letters, overdue)

    def first_in_room(self, account: str, count: int) -> list[str]:
        """Return who waits for the account's next call slots, the first of them first."""
        return cast("list[str]", self._redis.zrange(keys.room(account), 0, count - 1))
