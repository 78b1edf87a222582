"""What kind of server the jobs lie on, and whether it keeps them: for ``finetune doctor`` and the metrics."""

from dataclasses import dataclass

import redis


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a server says of itself in INFO, which managed services allow where they refuse CONFIG.

    ``max_bytes`` is 0 without a limit, ``evicted`` how many keys it dropped for want of memory, ``log_ok`` whether its
    last write to the append-only log went well."""

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


def server_facts(client: redis.Redis) -> ServerFacts:
    """Ask the server.

    Raises:
        redis.RedisError: it is out of reach, or refuses.
    """
    info = client.info()
    valkey = info.get("valkey_version")
    return ServerFacts(
        name="Valkey" if valkey else "Redis",
        version=str(valkey or info.get("redis_version", "")),
        append_only=bool(info.get("aof_enabled")),
        eviction=str(info.get("maxmemory_policy", "")),
        replica=info.get("role") != "master",
        cluster=bool(info.get("cluster_enabled")),
        used_bytes=int(info.get("used_memory", 0)),
        max_bytes=int(info.get("maxmemory", 0)),
        evicted=int(info.get("evicted_keys", 0)),
        log_ok=info.get("aof_last_write_status", "ok") == "ok",
    )
