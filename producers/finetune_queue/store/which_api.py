"""Which API the jobs on a Redis are for: the sandbox's must not be paid for by the first worker with a real key."""

from dataclasses import dataclass
from typing import Literal

import redis

from finetune_queue.store import keys
from finetune_queue.store.workers import Workers

Api = Literal["sandbox", "paid"]


@dataclass(frozen=True, slots=True)
class OtherApi:
    """What there is for the other API: live jobs, and workers that were seen lately."""

    jobs: int
    workers: int


def note_api(client: redis.Redis, api: Api) -> OtherApi | None:
    """Note which API this Redis is for; if it has jobs or workers of the other, note nothing and return what it has.

    Raises:
        redis.RedisError: it is out of reach, or full.
    """
    before = client.get(keys.api())
    if before == api:
        return None
    if before is not None:
        found = OtherApi(client.zcard(keys.deadlines()), len(Workers(client).alive()))
        if found.jobs or found.workers:
            return found
    client.set(keys.api(), api)
    return None
