"""The stream of all events, read from any place in it."""

from dataclasses import dataclass
from typing import Any, cast

import redis

from finetune_queue.store import keys

STREAM_LENGTH = 100_000
"""About how many events the stream is trimmed to; each job keeps all of its own."""

PLACE = r"[0-9]{1,19}-[0-9]{1,19}"
"""What a place in a stream looks like: the id that Redis gave an entry."""

START = "0-0"
"""The place before the first event."""


@dataclass(frozen=True, slots=True)
class FeedItem:
    """One event as the JSON text that was stored, and its place in the stream."""

    place: str
    event: str


class Feed:
    """Reads the stream. It is trimmed to a set length: what is older than its first event is gone."""

    def __init__(self, client: redis.Redis) -> None:
        """``client`` must wait longer for a reply than :meth:`wait` is asked to."""
        self._redis = client

    def latest(self) -> str:
        """Return the place of the newest event."""
        rows = cast("list[tuple[str, Any]]", self._redis.xrevrange(keys.events(), count=1))
        return rows[0][0] if rows else START

    def after(self, place: str, limit: int) -> list[FeedItem]:
        """Return up to ``limit`` events after ``place``, oldest first."""
        rows = cast("list[tuple[str, dict[str, str]]]", self._redis.xrange(keys.events(), f"({place}", count=limit))
        return [FeedItem(at, fields["event"]) for at, fields in rows]

    def wait(self, place: str, seconds: float, limit: int) -> list[FeedItem]:
        """Wait up to ``seconds`` for events after ``place`` and return them, ``limit`` at most."""
        reply = cast("Any", self._redis.xread({keys.events(): place}, count=limit, block=max(1, int(seconds * 1000))))
        rows = reply[0][1] if reply else []
        return [FeedItem(at, fields["event"]) for at, fields in rows]
