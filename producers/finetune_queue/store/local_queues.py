"""Streams and lists on the service's own Redis, as sinks for programs in any language."""

import redis

MOST_WAITING = 100_000
"""How many events a list may hold, or a broker's queue, and to about how many a stream is trimmed, so that a sink that
nobody reads cannot fill the server that all jobs are on."""


class QueueFullError(Exception):
    """The list holds as much as it may: nobody takes from it."""


class LocalQueues:
    """Puts events into streams and lists by their plain names."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def add_to_stream(self, name: str, event: str) -> None:
        """Append to a stream, field ``event``.

        Raises:
            redis.RedisError: the server is out of reach, or the name is that of something else.
        """
        self._redis.xadd(name, {"event": event}, maxlen=MOST_WAITING, approximate=True)

    def push_to_list(self, name: str, event: str) -> None:
        """Push on the left of a list, so that a consumer's BRPOP gets the oldest.

        Raises:
            QueueFullError: it is full.
            redis.RedisError: the server is out of reach, or the name is that of something else.
        """
        if int(self._redis.llen(name)) >= MOST_WAITING:
            message = f"the list holds {MOST_WAITING} events that nobody consumes"
            raise QueueFullError(message)
        self._redis.lpush(name, event)
