"""Running a gateway in a thread, and the token that its tests use."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
