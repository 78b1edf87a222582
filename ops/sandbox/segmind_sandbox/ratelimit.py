"""Two rate limiters, each for one account. The caller gives the time, so that a test can give its own.

Neither Segmind's algorithm nor its treatment of refused calls is documented. Chosen here: a refused call is not
counted, and a window is half open: two calls exactly one window apart do not share it.
"""

from __future__ import annotations

from collections import deque
from typing import Literal, Protocol

from segmind_sandbox.settings import RateLimit


class RateLimiter(Protocol):
    """Decides call by call; ``now`` must not run backwards."""

    def admit(self, now: float) -> float | None:
        """None if the call is admitted (and counted), else the seconds until one would be."""


class SlidingWindowLog:
    """Strict: never more than N admitted calls in any window of W seconds, wherever it starts."""

    def __init__(self, limit: RateLimit) -> None:
        self._limit = limit
        self._admitted: deque[float] = deque()

    def admit(self, now: float) -> float | None:
        """See RateLimiter."""
        while self._admitted and now - self._admitted[0] >= self._limit.seconds:
            self._admitted.popleft()
        if len(self._admitted) < self._limit.calls:
            self._admitted.append(now)
            return None
        return self._limit.seconds - (now - self._admitted[0])


class FixedWindow:
    """A counter that starts again at every multiple of W: up to 2 N calls may pass around a boundary."""

    def __init__(self, limit: RateLimit) -> None:
        self._limit = limit
        self._window = 0.0
        self._count = 0

    def admit(self, now: float) -> float | None:
        """See RateLimiter."""
        window = now // self._limit.seconds
        if window != self._window:
            self._window, self._count = window, 0
        if self._count < self._limit.calls:
            self._count += 1
            return None
        return (window + 1) * self._limit.seconds - now


def make_limiter(algorithm: Literal["sliding", "fixed"], limit: RateLimit) -> RateLimiter:
    """The limiter of that name."""
    return SlidingWindowLog(limit) if algorithm == "sliding" else FixedWindow(limit)
