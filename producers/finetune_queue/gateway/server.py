"""Running the gateway: uvicorn on one socket, with what must be true before it listens."""

import asyncio
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from finetune_queue.gateway.app import create_app
from finetune_queue.loopback import is_loopback
from finetune_queue.settings import Settings, SettingsError

GRACE = 5
"""Seconds that running requests have when the gateway is told to stop."""

KEPT = 100
"""Seconds that an idle connection is kept for its next request: longer than proxies and clients keep theirs (nginx and
load balancers 60, Go's client 90). Otherwise one of them would now and then send a request into a connection that is
being closed, and, as a POST is not sent again, answer its own client with a 502."""

HEAD_SECONDS = 10.0
"""Seconds within which the head of a request has to arrive on a connection. uvicorn itself waits for ever, so a
stranger could use up all connections by opening a thousand."""


class _Connection(H11Protocol):
    """A connection of uvicorn's that is closed if no request comes in time."""

    _until: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's is
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_waiting()

    def _wait_for_head(self) -> None:
        cycle: Any = self.cycle  # of the latest request; None before the first
        if cycle is not None and not cycle.response_complete:
            self._stop_waiting()
        elif cycle is not None and self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]:
            # It was the rest of a request that was refused at its head; the connection is kept as after any other.
            self._stop_waiting()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        elif self._until is None:
            self._until = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._until is not None:
            self._until.cancel()
            self._until = None


class GatewayServer(uvicorn.Server):
    """A server that listens already when it is made, and ends its streams when it is told to stop."""

    def __init__(self, settings: Settings, host: str, port: int) -> None:
        """Listen on this address; port 0 takes a free one.

        Raises:
            SettingsError: without tokens it would listen where others can reach it; or a reader has no token.
            OSError: it cannot listen there.
        """
        if not settings.finetune_gateway_tokens and not is_loopback(host):
            message = (
                "FINETUNE_GATEWAY_TOKENS: missing, and without it the gateway listens on loopback addresses only, not "
                f"on {host}. Make a token: finetune gateway token NAME"
            )
            raise SettingsError([message])
        if nobody := settings.unknown_readers:
            raise SettingsError([f"FINETUNE_GATEWAY_READERS: there is no token for {', '.join(nobody)}"])
        self.socket = _listen(host, port)
        name = f"[{host}]" if ":" in host else host
        self.url = f"http://{name}:{self.socket.getsockname()[1]}"
        self._app = create_app(settings)
        super().__init__(
            uvicorn.Config(
                self._app,
                http=_Connection,
                log_config=None,
                access_log=False,  # the edge logs each request, without what may be secret in its path
                server_header=False,
                timeout_keep_alive=KEPT,
                timeout_graceful_shutdown=GRACE,
            )
        )

    def run_until_stopped(self) -> None:
        """Serve until SIGINT or SIGTERM; a second one ends at once."""
        asyncio.run(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        await self.serve([self.socket])

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: uvicorn would raise them again at the end, as if a stop asked for had failed."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the streams first: each would hold its connection until its client goes."""
        self._app.state.backend.hub.stop()
        await super().shutdown(sockets)


def _listen(host: str, port: int) -> socket.socket:
    listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    # Made again from its descriptor, which finds out the protocol: asyncio sets TCP_NODELAY only where that is said to
    # be TCP, and without it each answer on a kept connection would wait 40 ms for an acknowledgement.
    return socket.socket(fileno=listening.detach())
