"""Waiting for a condition, with a deadline."""

import time
from collections.abc import Callable


def until(condition: Callable[[], bool], *, seconds: float, pause: float = 0.02) -> None:
    """Return once ``condition`` holds; fail if it does not within ``seconds``."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            message = f"not within {seconds} s: {condition}"
            raise AssertionError(message)
        time.sleep(pause)
