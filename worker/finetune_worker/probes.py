"""A worker's probes over HTTP: ``/livez``, is it to be restarted, and ``/readyz``, does it take work.

Redis or Segmind being away is no reason for a restart, which would not bring them back: while a server does not answer,
no loop counts as stuck. See docs/kubernetes.md.
"""

import json
import math
import socket
import socketserver
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any

import structlog
from celery import bootsteps
from celery.exceptions import WorkerShutdown

from finetune_queue.store import connect, silence
from finetune_worker.broker import fetches
from finetune_worker.container import Container
from finetune_worker.pulse import Loop

log = structlog.get_logger(__name__)

TICK = 1.0
"""Seconds between two signs of life of Celery's event loop."""

FRESH = 10.0
"""Seconds: a worker is ready if the broker answered it within so many when it asked for messages."""

QUICK = 1.0
"""Seconds that a server has for a connection, and then for an answer."""

IDLE = 5.0
"""Seconds that a connection to the probes may be silent."""

Answer = tuple[HTTPStatus, dict[str, Any]]


class Probes:
    """What the probes answer."""

    def __init__(self, container: Container) -> None:
        """Connects to nothing yet."""
        self._container = container
        settings = container.settings
        urls = {settings.finetune_redis_url, settings.finetune_broker_url or settings.finetune_redis_url}
        self._servers = [connect(url, connect_timeout=QUICK, read_timeout=QUICK) for url in sorted(urls)]

    def live(self) -> Answer:
        """Say whether every loop goes round, or has a reason not to."""
        stuck = self._container.pulse.stuck()
        if not stuck or self._container.stopping:
            return HTTPStatus.OK, {"status": "ok"}
        if why := self._silence():
            self._container.pulse.excuse()
            return HTTPStatus.OK, {"status": "ok", "detail": why}
        loops = {str(loop): round(seconds) for loop, seconds in stuck.items()}
        log.error("loops_stuck", loops=loops)
        return HTTPStatus.SERVICE_UNAVAILABLE, {"status": "stuck", "seconds": loops}

    def ready(self) -> Answer:
        """Say whether the worker takes messages, and can work on them."""
        if self._container.stopping:
            return _not_ready("the worker is stopping")
        if why := self._silence():
            return _not_ready(why)
        age = self._container.pulse.age(Loop.FETCH)
        if age > FRESH:
            since = "yet" if math.isinf(age) else f"since {age:.0f} s"
            return _not_ready(f"the worker has taken no messages {since}")
        return HTTPStatus.OK, {"status": "ok"}

    def close(self) -> None:
        """Close the connections."""
        for server in self._servers:
            server.close()

    def _silence(self) -> str:
        return next(filter(None, map(silence, self._servers)), "")


def _not_ready(why: str) -> Answer:
    return HTTPStatus.SERVICE_UNAVAILABLE, {"status": "not ready", "detail": why}


class ProbeServer(socketserver.ThreadingTCPServer):
    """Serves the probes on all addresses, each request in a thread of its own."""

    allow_reuse_address = True
    daemon_threads = True
    address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET

    def __init__(self, port: int, probes: Probes) -> None:
        """Listen.

        Raises:
            OSError: the port is in use, or not allowed.
        """
        self.probes = probes
        super().__init__(("", port), _Handler)

    def server_bind(self) -> None:
        """Take IPv4 too."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - socketserver's signature
        """Log a defect, and say nothing of who hung up. A traceback on stderr would be no line of the log."""
        error = sys.exception()
        if not isinstance(error, OSError):
            log.error("probe_crashed", exc_info=error)


class _Handler(BaseHTTPRequestHandler):
    timeout = IDLE
    server: ProbeServer

    def do_GET(self) -> None:
        """Answer one probe."""
        routes = {"/livez": self.server.probes.live, "/readyz": self.server.probes.ready}
        route = routes.get(self.path.partition("?")[0])
        status, body = route() if route else (HTTPStatus.NOT_FOUND, {"status": "not found"})
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args: object) -> None:
        """Keep quiet: a probe comes every few seconds."""


class ProbeStep(bootsteps.StartStopStep):
    """Serves the probes of a worker from its start to its end, if it is told a port."""

    requires = ("celery.worker.components:Timer", "celery.worker.components:Pool")

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self._server: ProbeServer | None = None

    def start(self, parent: Any) -> None:
        """Start serving, and noting that the event loop goes round.

        Raises:
            WorkerShutdown: the port cannot be had; a worker without probes would be restarted for ever.
        """
        container: Container = parent.app.finetune.container
        port = container.settings.finetune_probe_port
        if port is None:
            return
        try:
            self._server = ProbeServer(port, Probes(container))
        except OSError as error:
            log.critical("probe_port_not_free", port=port, error=str(error), action="Set FINETUNE_PROBE_PORT.")
            raise WorkerShutdown(1) from error
        threading.Thread(target=self._server.serve_forever, name="probes", daemon=True).start()
        parent.timer.call_repeatedly(TICK, self._tick, (parent, container))

    def stop(self, parent: Any) -> None:  # noqa: ARG002 - Celery's signature
        """Stop serving."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server.probes.close()

    def terminate(self, parent: Any) -> None:
        """End with a worker that ends at once."""
        self.stop(parent)

    @staticmethod
    def _tick(parent: Any, container: Container) -> None:
        container.pulse.beat(Loop.CONSUMER)
        if fetches(parent.consumer):
            container.pulse.beat(Loop.FETCH)
