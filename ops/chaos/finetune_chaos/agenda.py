"""What is still to happen, and when: acts that find nothing to hit are tried again for a while."""

import heapq
import time
from collections.abc import Callable
from itertools import count

Blow = Callable[[], bool]
"""Does something; False if there was nothing to do it to."""

PATIENCE = 20.0
"""Seconds for which an act waits for something that it can hit."""

AGAIN = 0.03
"""Seconds until it is tried again."""


class Agenda:
    """Times are seconds since `start`."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._order = count()
        self._waiting: list[tuple[float, int, float, str, Blow]] = []

    def start(self) -> None:
        """Let the time begin now."""
        self._began = time.monotonic()

    @property
    def now(self) -> float:
        """The time."""
        return time.monotonic() - self._began

    def at(self, when: float, kind: str, blow: Blow) -> None:
        """Let something happen at a time."""
        heapq.heappush(self._waiting, (when, next(self._order), when, kind, blow))

    def after(self, seconds: float, kind: str, blow: Blow) -> None:
        """Let something happen in so many seconds."""
        self.at(self.now + seconds, kind, blow)

    def strike(self, attempt: Callable[[str, Blow], bool]) -> None:
        """Let ``attempt`` do everything whose time has come."""
        now = self.now
        while self._waiting and self._waiting[0][0] <= now:
            _, order, since, kind, blow = heapq.heappop(self._waiting)
            if not attempt(kind, blow) and self.now < since + PATIENCE:
                heapq.heappush(self._waiting, (self.now + AGAIN, order, since, kind, blow))
