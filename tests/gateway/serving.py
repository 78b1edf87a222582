"""Running a gateway in a thread, the token that its tests use, and requests sent to it byte by byte."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

from finetune_queue.gateway.server import GatewayServer
from finetune_queue.settings import Settings

TOKEN = "ftq_test-0123456789abcdefghijklmnopqrstuvwxyzABCD"  # the same in every process that collects the tests
AUTH = {"Authorization": f"Bearer {TOKEN}"}
HOOK_SECRET = "a-secret-of-the-tests-and-no-other-0123456789"


@contextmanager
def run_gateway(settings: Settings) -> Iterator[str]:
    """Serve until the block ends; yields the base URL."""
    server = GatewayServer(settings, "127.0.0.1", 0)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([server.socket])), name="gateway")
    thread.start()
    try:
        yield server.url
    finally:
        server.should_exit = True
        thread.join(15)
        assert not thread.is_alive(), "the gateway did not stop"


MakeSettings = Callable[..., Settings]
Start = Callable[[Settings], str]


def raw(url: str, data: bytes, *, wait: float = 10) -> bytes:
    """Send bytes as they are and read until the server closes or is silent for ``wait`` seconds."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=wait) as connection:
        connection.sendall(data)
        return reply_on(connection)


def reply_on(connection: socket.socket) -> bytes:
    """Read until the end of a reply in JSON, or until the server closes or is silent for the connection's time-out."""
    found = b""
    with suppress(TimeoutError):
        while not (b"\r\n\r\n" in found and found.endswith(b"}")) and (piece := connection.recv(65536)):
            found += piece
    return found
