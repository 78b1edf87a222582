"""Closing a client's connection without a reply, under uvicorn.

ASGI has no message for it, so the protocol class here puts the connection's transport into the state that uvicorn
copies to every request's scope.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import cast

from starlette.types import Receive, Scope
from uvicorn.protocols.http.h11_impl import H11Protocol

_TRANSPORT = "sandbox_transport"
_NO_LINGER = struct.pack("ii", 1, 0)  # close at once: the peer gets RST instead of FIN


class SandboxProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 protocol, whose requests can reach their transport."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Remember the transport for the requests of this connection."""
        self.app_state = {**self.app_state, _TRANSPORT: transport}
        # asyncio sets this only for sockets made with an explicit protocol; without it each reply waits for an ACK.
        _socket(transport).setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().connection_made(transport)


class HangUpError(Exception):
    """Raised by an operation that gives no reply: close the connection, by RST if ``reset``."""

    def __init__(self, *, reset: bool) -> None:
        super().__init__("reset" if reset else "closed")
        self.reset = reset


def _transport(scope: Scope) -> asyncio.Transport | None:
    return cast("asyncio.Transport | None", scope.get("state", {}).get(_TRANSPORT))


def _socket(transport: asyncio.Transport) -> socket.socket:
    return cast("socket.socket", transport.get_extra_info("socket"))


async def hang_up(scope: Scope, receive: Receive, *, reset: bool) -> None:
    """Close the connection of this request: what was written is flushed, or with ``reset`` dropped and RST sent.

    Raises RuntimeError if the server is not run with SandboxProtocol.
    """
    transport = _transport(scope)
    if transport is None:
        raise RuntimeError("faults that close the connection need uvicorn with http=SandboxProtocol")
    if transport.is_closing():
        pass  # the client was first, and its socket may be closed by now
    elif reset:
        _socket(transport).setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        transport.abort()
    else:
        transport.close()
    # uvicorn counts a request as unanswered, and answers it with 500, unless it has seen the disconnect.
    while (await receive())["type"] != "http.disconnect":
        pass


def is_closing(scope: Scope) -> bool:
    """Whether the client of this request has gone: uvicorn drops what is sent to it then, and raises nothing."""
    transport = _transport(scope)
    return transport is not None and transport.is_closing()
