"""Running the sandbox under uvicorn, on a socket that is bound before anything is said about it."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn

from segmind_sandbox.app import create_app
from segmind_sandbox.connection import SandboxProtocol
from segmind_sandbox.sandbox import Sandbox
from segmind_sandbox.settings import SandboxSettings

_KEEP_ALIVE = 75  # seconds, as common gateways: an idle pooled connection is not closed under a client's next call
_GRACE = 2  # seconds for requests under way at the end


class SandboxServer(uvicorn.Server):
    """A uvicorn server that says when it is ready, and ends the waits of faults when it stops."""

    def __init__(self, settings: SandboxSettings, on_ready: Callable[[], None] = lambda: None) -> None:
        app = create_app(settings)
        self.settings = settings
        self._on_ready = on_ready
        self._sandbox: Sandbox = app.state.sandbox
        self.socket = socket.create_server((settings.host, settings.port), backlog=2048)
        super().__init__(
            uvicorn.Config(
                app, http=SandboxProtocol, ws="none", lifespan="on", log_config=None, log_level="warning",
                access_log=False, server_header=False, timeout_keep_alive=_KEEP_ALIVE, timeout_graceful_shutdown=_GRACE,
            )
        )  # fmt: skip

    @property
    def base_url(self) -> str:
        """Where the sandbox listens."""
        host, port = self.socket.getsockname()[:2]
        return f"http://{host}:{port}"

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start; see uvicorn."""
        await super().startup(sockets)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop; see uvicorn."""
        self._sandbox.close_waits()
        await super().shutdown(sockets)
