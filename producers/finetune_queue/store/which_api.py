"""Which API the jobs on a Redis are for: the sandbox's must not be paid for by the first worker with a real key."""

from dataclasses import dataclass
from typing import cast

import redis

from finetune_queue.store import keys
from finetune_queue.store.workers import Api, Workers


@dataclass(frozen=True, slots=True)
class OtherApi:
    """What there is for the other API: live jobs, and workers that were seen lately."""

    jobs: int
    workers: int


def noted_api(client: redis.Redis) -> Api | None:
    """Return which API this Redis is for; None where no worker has noted it.

    Raises:
        redis.RedisError: it is out of reach.
    """
    return cast("Api | None", client.get(keys.api()))


def note_api(client: redis.Redis, api: Api) -> OtherApi | None:
    """Note which API this Redis is for; if it has jobs or workers of the other, note nothing and return what it has.

    Raises:
        redis.RedisError: it is out of reach, or full.
    """
    # Read first: a full server refuses to write, and has the other's jobs all the same.
    if (client.get(keys.api()) or client.set(keys.api(), api, nx=True, get=True) or api) == api:
        return None
    found = OtherApi(client.zcard(keys.deadlines()), len(Workers(client).alive()))
    if found.jobs or found.workers:
        return found
    client.delete(keys.api())  # which a full server takes; without a name there, a worker's next sign of life notes it
    client.set(keys.api(), api, nx=True)
    return None
