"""The world outside: a web sink that fails at times, the host of a public dataset, and Segmind's webhooks on their way.

One small web server. Sinks' deliveries are checked for their signature and kept; webhooks are passed on to the gateway,
unless they are to be lost, late or repeated.
"""

import json
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import httpx
from standardwebhooks import Webhook, WebhookVerificationError

MOODS = frozenset(
    {"hook lost", "hook late", "hook repeated", "sink slow", "sink error", "sink busy", "sink reply lost"}
)
"""What can go wrong out here."""

DATASET, HOOK, OWN, REPLY = "/public/faces.zip", "/segmind-hook", "/own", "/reply"


@dataclass
class Mood:
    """What goes wrong with the next few requests: how many are left, and for how long each takes."""

    left: int = 0
    seconds: float = 0.0


@dataclass
class Taken:
    """What a web sink took, in the order in which it did."""

    events: list[dict[str, Any]] = field(default_factory=list)
    forged: int = 0


class Outside:
    """A context manager; `port` is known from the start, `gateway` once somebody has set it."""

    def __init__(self, dataset: bytes, signing_secret: str) -> None:
        self.taken = {OWN: Taken(), REPLY: Taken()}
        self.fired: Counter[str] = Counter()
        self.gateway: dict[str, str] = {}
        """For each account the URL that the gateway takes its webhooks at."""
        self._dataset = dataset
        self._secret = Webhook(signing_secret)
        self._moods: dict[str, Mood] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._http = httpx.Client(timeout=10, trust_env=False)
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    def url(self, path: str) -> str:
        """Return the URL of one of its paths."""
        return f"http://127.0.0.1:{self._server.server_port}{path}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)
        self._http.close()

    def upset(self, kind: str, count: int, seconds: float) -> bool:
        """Let something of `MOODS` go wrong with the next ``count`` requests that it can happen to."""
        with self._lock:
            self._moods[kind] = Mood(count, seconds)
        return True

    def calm(self) -> None:
        """Let nothing go wrong any more."""
        with self._lock:
            self._moods.clear()

    def _draws(self, kind: str) -> Mood | None:
        with self._lock:
            mood = self._moods.get(kind)
            if mood is None or mood.left == 0:
                return None
            mood.left -= 1
            self.fired[kind] += 1
            return mood

    def take_event(self, path: str, headers: dict[str, str], body: bytes) -> int | None:
        """Take a delivery; returns the status to answer, None to give no answer."""
        taken = self.taken[path]
        slow = self._draws("sink slow")
        if slow is not None:
            self._closing.wait(slow.seconds)
        if self._draws("sink error"):
            return 500
        if self._draws("sink busy"):
            return 503
        try:
            self._secret.verify(body.decode(), headers)
        except WebhookVerificationError:
            taken.forged += 1
            return 401
        with self._lock:
            taken.events.append(json.loads(body))
        return None if self._draws("sink reply lost") else 204

    def take_hook(self, body: bytes) -> None:
        """Pass a webhook of Segmind on to the gateway, as the network would: perhaps late, twice or not at all."""
        if self._draws("hook lost"):
            return
        late = self._draws("hook late")
        if late is not None:
            self._closing.wait(late.seconds)
        times = 3 if self._draws("hook repeated") else 1
        for _ in range(times):
            # The payload does not name its account, and a hook of the other one is as good as a forged one.
            for url in list(self.gateway.values()):
                with suppress(httpx.HTTPError):
                    self._http.post(url, content=body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed in the middle is what this is about."""


def _handler(outside: Outside) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 15

        def do_GET(self) -> None:
            found = self.path == DATASET
            self._answer(200 if found else 404, outside._dataset if found else b"")  # noqa: SLF001 - its own part

        do_HEAD = do_GET  # noqa: N815 - the library's name

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            path = "/" + self.path.split("/")[1].partition("?")[0]
            if path == HOOK:
                self._answer(200)
                outside.take_hook(body)
                return
            if path not in outside.taken:
                self._answer(404)
                return
            headers = {name.lower(): value for name, value in self.headers.items()}
            status = outside.take_event(path, headers, body)
            if status is None:
                self.close_connection = True
                return
            self._answer(status)

        def _answer(self, status: int, body: bytes = b"") -> None:
            self.send_response(status)
            if status == 503:
                self.send_header("Retry-After", "1")
            self.send_header("Content-Type", "application/zip")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
            self.close_connection = True

        def log_message(self, *_args: Any) -> None:
            """Nothing."""

    return Handler
