"""Connections to Redis: time-outs, keep-alive and what counts as out of reach, in one place."""

from typing import Any

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

CONNECT_TIMEOUT = 5.0
"""Seconds to connect."""

READ_TIMEOUT = 10.0
"""Seconds to wait for a reply."""


def connect(url: str, *, connect_timeout: float = CONNECT_TIMEOUT, read_timeout: float = READ_TIMEOUT) -> redis.Redis:
    """Make a client with a connection pool; it connects at the first command.

    A command is not sent twice by the client: what may be repeated is decided by who calls it.
    """
    client = redis.Redis.from_url(
        url,
        decode_responses=True,
        socket_connect_timeout=connect_timeout,
        socket_timeout=read_timeout,
        # A socket file has no other machine that could vanish, and its connections know no keep-alive.
        **({} if url.startswith("unix:") else {"socket_keepalive": True}),
        health_check_interval=25,
        retry=Retry(ExponentialWithJitterBackoff(), 0),
        client_name="finetune-queue",
    )
    pool = client.connection_pool
    pool.connection_class = type("PrimaryConnection", (_LeavesReplicas, pool.connection_class), {})
    return client


class _LeavesReplicas:
    """Closes a connection to a server that has become a replica, as after a failover behind one name: the next one
    looks the name up again. Kept open, it would be refused every write for as long as the old server lives."""

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().read_response(*args, **kwargs)  # type: ignore[misc]
        except redis.ReadOnlyError:
            # Not here and now: the other replies of a pipeline are still to be read from it.
            self.mark_for_reconnect()  # type: ignore[attr-defined]
            raise
