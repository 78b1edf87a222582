"""A small real web server on loopback, whose answers a test writes down, and a trap that counts who knocks."""

import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass(frozen=True)
class Answer:
    """What a path answers. A `Content-Length` of the body is added unless `length` says otherwise; None sends none."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = -1
    methods: tuple[str, ...] = ("GET", "HEAD")


Route = Answer | Callable[[BaseHTTPRequestHandler], None]


class Web:
    """`routes` by path; a callable gets the request's handler and writes for itself. `seen` lists what was asked."""

    def __init__(
        self, routes: dict[str, Route] | None = None, *, tls: ssl.SSLContext | None = None, port: int = 0
    ) -> None:
        self.routes = routes or {}
        self.seen: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 30

            def answer(self) -> None:
                path = self.path.partition("?")[0]
                web.seen.append((self.command, self.path))
                web.headers.append(dict(self.headers.items()))
                route = web.routes.get(path, Answer(status=404))
                if not isinstance(route, Answer):
                    route(self)
                    return
                allowed = self.command in route.methods
                self.send_response(route.status if allowed else 405)
                for name, value in route.headers.items():
                    self.send_header(name, value)
                length = len(route.body) if route.length == -1 else route.length
                if length is not None:
                    self.send_header("Content-Length", str(length))
                self.end_headers()
                if self.command != "HEAD" and allowed:
                    self.wfile.write(route.body)
                self.close_connection = True

            do_GET = do_HEAD = do_PUT = do_POST = answer  # noqa: N815  # names set by the library

            def log_message(self, *_args: Any) -> None:
                """Nothing."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that went away in the middle is what some tests are about."""

        self._server = Server(("127.0.0.1", port), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def port(self) -> int:
        return self._server.server_port

    def url(self, path: str = "/") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


class Trap:
    """Listens on loopback, never answers, and counts the connections that reached it."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.knocks = 0
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.knocks += 1
            connection.close()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Closing alone does not wake a thread that accepts.
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(10)
