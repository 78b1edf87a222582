"""What kind of server the jobs lie on, and whether it keeps them: for ``finetune doctor``."""

from dataclasses import dataclass

import redis


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a server says of itself in INFO, which managed services allow where they refuse CONFIG."""

    name: str
    version: str
    append_only: bool
    eviction: str
    replica: bool
    cluster: bool


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
    )
