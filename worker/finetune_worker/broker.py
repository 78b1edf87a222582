"""Mends how kombu 5.7 gives up a Redis connection; without it a worker may exit when the broker goes away."""

from typing import Any

from kombu.transport.redis import Channel

_original = Channel._connparams  # type: ignore[attr-defined]  # noqa: SLF001 - the one place that all uses of a dead channel come through


def mend() -> None:
    """Let a channel that lost its connection say so.

    When a broker dies, kombu closes the connection's channels one by one and stops at the first that fails. One that
    is left is closed, or acknowledges a message, when its transport is gone, and raises an AttributeError: not one of
    the errors that Celery takes for a lost connection, so the worker exits ("Unrecoverable error") instead of coming
    back. Here it is the ConnectionError that it means.
    """
    Channel._connparams = _connparams  # type: ignore[attr-defined]  # noqa: SLF001


def _connparams(self: Any, asynchronous: bool = False) -> Any:  # noqa: FBT001, FBT002 - kombu's signature
    if self.connection.client is None:
        message = "the connection of this channel was closed"
        raise ConnectionError(message)
    return _original(self, asynchronous=asynchronous)
