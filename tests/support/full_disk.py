"""A server whose disk is full: each write to its append-only log fails, as on a real one."""

from pathlib import Path
from typing import Any

import redis

from finetune_queue.local.valkey import ValkeyServer
from support.until import until


def fill_disk(server: ValkeyServer) -> None:
    """Let the server begin a new append-only log, which is at once on a full disk: it refuses every write then."""
    with redis.Redis.from_url(server.url, decode_responses=True, socket_timeout=5) as client:
        client.config_set("appendonly", "no")
        # What it opens as the new log. /dev/full says of every write that there is no space left on the device.
        (server.folder / "appendonlydir/temp-appendonly.aof.incr").symlink_to(Path("/dev/full"))
        client.config_set("appendonly", "yes")
        until(lambda: not _busy(client), seconds=30)
        client.set("the last that it takes", "")
        assert client.info("persistence")["aof_last_write_status"] == "err"


def _busy(client: Any) -> bool:
    found = client.info("persistence")
    return bool(found["aof_rewrite_in_progress"] or found["aof_rewrite_scheduled"])
