"""Connections to Redis: time-outs, keep-alive and what counts as out of reach, in one place."""

from typing import Any

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

CONNECT_TIMEOUT = 5.0
"""Seconds to connect."""

READ_TIMEOUT = 10.0
"""Seconds to wait for a reply."""

DISK_FAILS = "MISCONF"
"""The first word of the error of a server that takes no writes because it cannot save them."""


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
    pool.connection_class = type("PrimaryConnection", (_LeavesReplicas, TakesPing, pool.connection_class), {})
    return client


def database_of(url: str) -> str:
    """Return what names the database that a URL leads to: its server and number, without a user or password."""
    place: dict[str, Any] = redis.connection.parse_url(url)  # type: ignore[no-untyped-call]
    server = place.get("path") or f"{place.get('host')}:{place.get('port', 6379)}"
    return f"{server}/{place.get('db', 0)}"


class TakesPing:
    """Takes the refusal of a plain PING for a PONG; mixed into a connection's class. A primary that cannot write to its
    disk refuses PING like a write (MISCONF), though it still answers reads; and redis-py sends a PING before a command
    to see whether an idle connection is good."""

    _pinged = False

    def send_command(self, *args: Any, **kwargs: Any) -> Any:
        self._pinged = args == ("PING",)
        return super().send_command(*args, **kwargs)  # type: ignore[misc]

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        pinged, self._pinged = self._pinged, False
        try:
            return super().read_response(*args, **kwargs)  # type: ignore[misc]
        except redis.ResponseError as error:
            if pinged and str(error).startswith(DISK_FAILS):
                return "PONG"
            raise


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
