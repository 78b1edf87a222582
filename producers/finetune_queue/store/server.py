"""What kind of server the jobs lie on, and whether it keeps them: for starting workers, the doctor, the metrics."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import redis

from finetune_queue.store import keys
from finetune_queue.store.connection import DISK_FAILS

OLDEST = (7, 2)
"""The oldest Redis that the store's scripts are written for."""

MOST_SKEW = 5.0
"""Seconds by which a machine's clock may differ from Redis'. Requests' deadlines and the times of events are by the
machines' clocks, as are the signatures of stores and web hooks, which fail at some minutes."""


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a server says of itself in INFO, which managed services allow where they refuse CONFIG.

    ``max_bytes`` is 0 without a limit, ``evicted`` how many keys it dropped for want of memory, ``replicas`` how many
    are connected. ``log_ok`` is false if the last write to the append-only log failed, or if the server refuses every
    write because a snapshot failed."""

    name: str
    version: str
    append_only: bool
    eviction: str
    replica: bool
    cluster: bool
    used_bytes: int
    max_bytes: int
    evicted: int
    log_ok: bool
    replicas: int


@dataclass(frozen=True, slots=True)
class ServerProblem:
    """Something about a server that jobs should not be entrusted to, and what to do. On one that is ``unfit`` no worker
    starts. ``about`` is "redis", "persistence" or "eviction"."""

    about: str
    message: str
    action: str
    unfit: bool


def silence(client: redis.Redis) -> str:
    """Return why the server cannot be used: it refuses, or is silent beyond the client's time-outs. Empty if it can."""
    try:
        client.ping()
    except (redis.AuthenticationError, redis.ResponseError) as error:
        return f"Redis refuses: {error}"
    except redis.RedisError:
        return "Redis does not answer"
    return ""


def disk_trouble(client: redis.Redis) -> str:
    """Return why the server refuses every write, if its disk is the reason (it may be full); else an empty text.

    Raises:
        redis.RedisError: it is out of reach, or refuses.
    """
    try:
        # Such a server refuses PING, too. One with an argument, as TakesPing takes the refusal of a plain one for PONG.
        client.execute_command("PING", "disk?")  # type: ignore[no-untyped-call]
    except redis.ResponseError as error:
        if str(error).startswith(DISK_FAILS):
            return str(error)
        raise
    return ""


def refuses_writes(client: redis.Redis) -> str:
    """Return in the server's words why it takes no writes: it is full, a replica, or its disk fails. Empty if it takes
    them, or fails in another way."""
    try:
        client.set(keys.write_check(), "", px=1)
    except (redis.OutOfMemoryError, redis.ReadOnlyError) as error:
        return str(error)
    except redis.RedisError as error:
        return str(error) if str(error).startswith(DISK_FAILS) else ""
    return ""


def clock_skew(client: redis.Redis) -> float:
    """Return by how many seconds this machine's clock is ahead of the server's, measured at the middle of a round trip.

    Raises:
        redis.RedisError: it is out of reach, or refuses.
    """
    client.time()  # connects first
    before = time.time()
    seconds, micros = client.time()
    return (before + time.time()) / 2 - (seconds + micros / 1e6)


def server_facts(client: redis.Redis) -> ServerFacts:
    """Ask the server. From a replica the client then disconnects: after a failover behind one name, the next command
    looks the name up again.

    Raises:
        redis.RedisError: it is out of reach, or refuses.
    """
    info = client.info()
    replica = info.get("role") != "master"
    if replica:
        client.connection_pool.disconnect(inuse_connections=False)
    valkey = info.get("valkey_version")
    return ServerFacts(
        name="Valkey" if valkey else "Redis",
        version=str(valkey or info.get("redis_version", "")),
        append_only=bool(info.get("aof_enabled")),
        eviction=str(info.get("maxmemory_policy", "")),
        replica=replica,
        cluster=bool(info.get("cluster_enabled")),
        used_bytes=int(info.get("used_memory", 0)),
        max_bytes=int(info.get("maxmemory", 0)),
        evicted=int(info.get("evicted_keys", 0)),
        log_ok=info.get("aof_last_write_status", "ok") == "ok" and (replica or not disk_trouble(client)),
        replicas=int(info.get("connected_slaves", 0)),
    )


def server_problems(facts: ServerFacts, *, holds_jobs: bool = True) -> Iterator[ServerProblem]:
    """Yield what is wrong with a server, at most one problem of each kind. One that is the broker alone holds no jobs,
    but messages."""
    held, paid = ("jobs", ", and what was paid for") if holds_jobs else ("messages", "")
    server = f"{facts.name} {facts.version}"
    if facts.cluster:
        action = "Use one primary: Celery's transport has no Cluster."
        yield ServerProblem("redis", f"{server} is a Cluster", action, unfit=True)
    elif facts.replica:
        yield ServerProblem("redis", f"{server} is a replica", "Set the URL to that of the primary.", unfit=True)
    elif facts.name == "Redis" and _version(facts.version) < OLDEST:
        action = f"Use Redis {'.'.join(map(str, OLDEST))} or later, or Valkey."
        yield ServerProblem("redis", f"{server} is too old", action, unfit=True)
    if not facts.append_only:
        action = f"Set `appendonly yes`: a restart would lose {held}{paid}."
        yield ServerProblem("persistence", "the server keeps no append-only log", action, unfit=False)
    elif not facts.log_ok:
        action = "Check the server's disk, and whether a snapshot failed (docs/runbook.md, FinetuneRedisForgets)."
        yield ServerProblem(
            "persistence", "the server cannot write its append-only log, or a snapshot", action, unfit=False
        )
    if facts.eviction != "noeviction":
        policy = facts.eviction or "it does not say by which policy"
        action = f"Set `maxmemory-policy noeviction`: a full server would drop {held}."
        message = f"the server may drop {held} when full ({policy})"
        yield ServerProblem("eviction", message, action, unfit=bool(facts.eviction))


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
