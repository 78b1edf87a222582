"""Signs of life of a worker's loops: when each last went round, and which is stuck."""

import math
import time
from collections.abc import Mapping
from enum import StrEnum


class Loop(StrEnum):
    """What must go round for a worker to be of use."""

    CONSUMER = "consumer"  # Celery's event loop: takes messages, acknowledges them, hears remote control
    FETCH = "fetch"  # its requests for messages: the broker answers each within a second, also if there is none
    DISPATCHER = "dispatcher"
    NOTIFIER = "notifier"


LIMITS: dict[Loop, float] = {
    # Longer than any one operation on Redis with all its time-outs.
    Loop.CONSUMER: 60.0,
    Loop.DISPATCHER: 60.0,
    Loop.NOTIFIER: 60.0,
    # kombu itself drops a connection that is silent for 11 to 21 s. From a longer silence it does not recover.
    Loop.FETCH: 180.0,
}
"""Seconds after which a loop that did not go round is stuck, if nothing excuses it."""


class Pulse:
    """Collects the signs; safe in threads, and cheap to call often."""

    def __init__(self, limits: Mapping[Loop, float] = LIMITS) -> None:
        self._limits = limits
        self._since = time.monotonic()
        self._beats: dict[Loop, float] = {}

    def beat(self, loop: Loop) -> None:
        """Note that a loop went round."""
        self._beats[loop] = time.monotonic()

    def age(self, loop: Loop) -> float:
        """Return the seconds since a loop went round; infinity if it never did."""
        return time.monotonic() - self._beats.get(loop, -math.inf)

    def excuse(self) -> None:
        """Count silence from now on only: what kept the loops waiting until now was no fault of theirs."""
        self._since = time.monotonic()

    def stuck(self) -> dict[Loop, float]:
        """Return which loops are stuck, and for how many seconds."""
        excused = time.monotonic() - self._since
        waited = {loop: min(self.age(loop), excused) for loop in self._limits}
        return {loop: seconds for loop, seconds in waited.items() if seconds > self._limits[loop]}
