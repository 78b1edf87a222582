"""Connections to Redis: time-outs, keep-alive and what counts as out of reach, in one place."""

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

CONNECT_TIMEOUT = 5.0
"""Seconds to connect."""

READ_TIMEOUT = 10.0
"""Seconds to wait for a reply."""


def connect(url: str, *, read_timeout: float = READ_TIMEOUT) -> redis.Redis:
    """Make a client with a connection pool; it connects at the first command.

    A command is not sent twice by the client: what may be repeated is decided by who calls it.
    """
    return redis.Redis.from_url(
        url,
        decode_responses=True,
        socket_connect_timeout=CONNECT_TIMEOUT,
        socket_timeout=read_timeout,
        socket_keepalive=True,
        health_check_interval=25,
        retry=Retry(ExponentialWithJitterBackoff(), 0),
        client_name="finetune-queue",
    )
