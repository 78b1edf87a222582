"""One reader of the event stream for all its followers: it wakes those that there is news for, and they read it.

So a follower holds no connection to Redis while it waits, a slow one holds up nobody, and none misses an event: each
remembers its own place in the stream, and has no queue that could overflow.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog
from anyio import CapacityLimiter, to_thread

from finetune_queue.gateway.problems import later
from finetune_queue.store import Feed, JobNotFoundError, RedisError, UnreadableJobError

log = structlog.get_logger(__name__)

MAX_FOLLOWERS = 500

LIFETIME = 3600.0
"""Seconds after which a stream ends. Its client then connects again, perhaps to another gateway."""

LOOK_EVERY = 10.0
"""Seconds after which a follower that was not woken reads by itself, and sends a comment to keep its connection
alive."""

PACE = 0.1
"""Seconds that a follower waits after it has read all, so that events which come one by one are read together."""

_BLOCK = 1.0  # also how long stopping may take
_BATCH = 500


@dataclass(frozen=True, slots=True)
class Batch:
    """What a follower read: pairs of place and JSON; ``more`` can be read at once; ``ended``: no event can come any
    more."""

    items: list[tuple[str, str]]
    more: bool = False
    ended: bool = False


Read = Callable[[str], Batch]
"""Reads the events after a place; called in a thread."""


class Hub:
    """Wakes followers. :meth:`run` has to run in their event loop."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._followers: dict[asyncio.Event, str | None] = {}
        self._wanted = asyncio.Event()
        self._stopping = False
        # Threads of its own, so that followers cannot use up those of the other requests, nor these the followers'.
        self._reader = CapacityLimiter(1)
        self._readers = CapacityLimiter(8)

    def stop(self) -> None:
        """End all streams."""
        self._stopping = True
        self._wake(None)

    async def run(self) -> None:
        """Read the stream while anybody follows it, until cancelled."""
        place: str | None = None
        while True:
            if not self._followers:
                self._wanted.clear()
                place = None
                await self._wanted.wait()
            try:
                if place is None:
                    place = await to_thread.run_sync(self._feed.latest, limiter=self._reader)
                    self._wake(None)
                found = await to_thread.run_sync(self._feed.wait, place, _BLOCK, _BATCH, limiter=self._reader)
                if found:
                    place = found[-1].place
                    self._wake({json.loads(item.event).get("subject") for item in found})
            except Exception as error:  # also an entry that is no event, and a thread that the system refuses
                log.warning("event_stream_unreadable", error=str(error), exc_info=not isinstance(error, RedisError))
                place = None
                await asyncio.sleep(_BLOCK)

    def _wake(self, subjects: set[str | None] | None) -> None:
        for news, subject in self._followers.items():
            if subjects is None or subject is None or subject in subjects:
                news.set()

    @contextmanager
    def _following(self, subject: str | None) -> Iterator[asyncio.Event]:
        news = asyncio.Event()
        self._followers[news] = subject
        self._wanted.set()
        try:
            yield news
        finally:
            del self._followers[news]

    def check_room(self) -> None:
        """Raise a problem (503) when there are as many streams as there may be."""
        if len(self._followers) >= MAX_FOLLOWERS:
            raise later("busy", f"{MAX_FOLLOWERS} streams are open.", 5)

    async def stream(self, subject: str | None, place: str, read: Read) -> AsyncIterator[bytes]:
        """Yield server-sent events from ``place`` on, as they come: those about ``subject``, or all.

        The stream ends with an event named ``end`` once ``read`` says that nothing can come any more, and without one
        when its time is over. While Redis is away it waits.
        """
        yield b"retry: 2000\n\n"
        end = time.monotonic() + LIFETIME
        with self._following(subject) as news:
            while not self._stopping and time.monotonic() < end:
                news.clear()
                try:
                    batch = await to_thread.run_sync(read, place, limiter=self._readers)
                except RedisError:
                    yield b": the queue is out of reach\n\n"
                    await asyncio.sleep(_BLOCK)
                    continue
                except (JobNotFoundError, UnreadableJobError):
                    return  # removed, or written by a newer version: the client is told which when it connects again
                for place, event in batch.items:  # noqa: PLR1704 - the follower's place moves on
                    yield f"id: {place}\ndata: {event}\n\n".encode()
                if batch.ended:
                    yield f"id: {place}\nevent: end\ndata: {{}}\n\n".encode()
                    return
                if batch.more:
                    continue
                await asyncio.sleep(PACE)
                try:
                    async with asyncio.timeout(min(LOOK_EVERY, max(0.0, end - time.monotonic()))):
                        await news.wait()
                except TimeoutError:
                    yield b": still here\n\n"
