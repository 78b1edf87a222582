"""Names that resolve to what a test says, connections that are seen, and servers to be led to."""

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.names import Names
from support.web import Trap, Web
from wire.certificates import server_context


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    known = Names()
    monkeypatch.setattr(socket, "getaddrinfo", known.getaddrinfo)
    return known


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that were connected to; none of the connections is made."""
    seen: list[str] = []

    def connect(_self: socket.socket, address: Any) -> None:
        seen.append(f"{address[0]}:{address[1]}")
        raise ConnectionRefusedError

    monkeypatch.setattr(socket.socket, "connect", connect)
    return seen


@pytest.fixture
def web() -> Iterator[Web]:
    with Web() as server:
        yield server


@pytest.fixture
def trap() -> Iterator[Trap]:
    with Trap() as each:
        yield each


@pytest.fixture
def trap_port() -> Iterator[int]:
    """A port that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield int(listening.getsockname()[1])


@pytest.fixture
def tls(tmp_path: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's context with a certificate for `files.test`, and the file that makes a client trust it."""
    return server_context(tmp_path, "files.test")
