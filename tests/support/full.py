"""A server without room."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def full(client: Any) -> Iterator[None]:
    """Let the server refuse whatever needs memory."""
    client.config_set("maxmemory", 1)
    try:
        yield
    finally:
        client.config_set("maxmemory", 0)
