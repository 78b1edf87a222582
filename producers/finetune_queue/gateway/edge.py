"""The outermost layer, which every request passes through, also one that no route takes.

It gives each request an id, one log line, a count for /metrics and the common headers, bounds its body and how many
requests run at once, and turns an exception that nothing else caught into an answer.
"""

import asyncio
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finetune_queue import tracing
from finetune_queue.contract import new_job_id
from finetune_queue.datasets.limits import MAX_ARCHIVE_BYTES
from finetune_queue.gateway.clients import Clients
from finetune_queue.gateway.problems import ProblemError, explain, internal_error, later, respond
from finetune_queue.loopback import is_loopback

log = structlog.get_logger(__name__)

MAX_JSON = 256 * 1024
MAX_HOOK = 64 * 1024
"""The most bytes of a body. A dataset's has to be smaller than what Segmind takes (``MAX_ARCHIVE_BYTES``)."""

JSON_SECONDS = 30.0
DATASET_SECONDS = 1800.0
"""Within how many seconds a body has to arrive."""

IDLE_SECONDS = 20.0
"""How many seconds a body may pause."""

MAX_RUNNING = 200
"""How many requests run at once, streams not counted; the next one gets a 503 with Retry-After."""

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}

_NO_ROUTE = "none"
_PROBES = frozenset({"/livez", "/readyz", "/metrics"})
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})

Observe = Callable[[str, str, int, float], None]
"""Told of each request: method, route, status, seconds."""


class Edge:
    """The ASGI middleware."""

    def __init__(self, app: ASGIApp, *, clients: Clients, observe: Observe) -> None:
        """``observe`` is told of each request. If ``clients`` asks for no token, requests that a web page of another
        site makes a browser send are refused."""
        self._app = app
        self._clients = clients
        self._observe = observe
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif _traced(scope):
            method, parent = scope["method"], Headers(scope=scope).get("traceparent")
            with tracing.span(method, kind="server", parent=parent, attributes={"http.request.method": method}):
                await self._handle(scope, receive, send)
        else:
            await self._handle(scope, receive, send)

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = new_job_id()
        scope.setdefault("state", {})["request_id"] = request_id
        started, status = time.monotonic(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        counted = not _endless(scope) and scope["path"] not in _PROBES
        self._running += counted
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                response = self._refusal(scope, counted=counted)
                if response is None:
                    await self._app(scope, _bounded(scope, receive), sending)
                else:
                    await response(scope, receive, sending)
            except ClientDisconnect:
                pass  # nobody is there to be answered
            except Exception as error:
                problem = explain(error)
                if problem is None:
                    log.exception("request_crashed", method=scope["method"], route=route_of(scope))
                    problem = internal_error()
                elif problem.status_code >= 500:
                    log.warning(
                        "request_failed",
                        method=scope["method"],
                        route=route_of(scope),
                        error=str(error),
                        error_type=type(error).__name__,
                    )
                if status:
                    raise  # the answer has begun; the server ends the connection
                await respond(problem, request_id)(scope, receive, sending)
            finally:
                self._running -= counted
                self._tell(scope, status, time.monotonic() - started)

    def _refusal(self, scope: Scope, *, counted: bool) -> Response | None:
        request_id = scope["state"]["request_id"]
        if counted and self._running > MAX_RUNNING:
            return respond(later("busy", f"{MAX_RUNNING} requests are running.", 1), request_id)
        if self._clients.local_only and (why := _foreign(scope)):
            return respond(ProblemError("foreign-origin", why), request_id)
        if scope["method"] not in _SAFE and scope["path"].startswith("/v1/"):
            # Before the body is read, which may come slowly: clients without a token must not use up MAX_RUNNING.
            try:
                self._clients.identify(_token(scope), changing=True)
            except ProblemError as error:
                return respond(error, request_id)
        return None

    def _tell(self, scope: Scope, status: int, seconds: float) -> None:
        route = route_of(scope)
        self._observe(scope["method"], route, status, seconds)
        if _traced(scope):
            tracing.tell({"http.response.status_code": status})
            if route != _NO_ROUTE:
                tracing.tell({"http.route": route}, name=f"{scope['method']} {route}")
            if status >= 500:
                tracing.failed(str(status))
        # A flood of webhooks, or the steady probes, would hide the other lines.
        quiet = scope["path"] in _PROBES or scope["path"].startswith("/hooks/")
        say = log.debug if quiet else log.info
        client = scope["state"].get("client")
        say(
            "http_request", method=scope["method"], route=route, status=status, seconds=round(seconds, 4), client=client
        )


def route_of(scope: Scope) -> str:
    """Return the route's template, not the path: a path may hold a secret, and there are too many for a label."""
    return getattr(scope.get("route"), "path", _NO_ROUTE)


def _endless(scope: Scope) -> bool:
    return bool(scope["path"].endswith("/stream"))


def _token(scope: Scope) -> str | None:
    scheme, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _traced(scope: Scope) -> bool:
    return scope["path"].startswith("/v1/") and not _endless(scope)


def _bounded(scope: Scope, receive: Receive) -> Receive:
    """Return ``receive`` with bounds on the body's size and time."""
    path = scope["path"]
    most, seconds = MAX_JSON, JSON_SECONDS
    if path == "/v1/datasets":
        most, seconds = MAX_ARCHIVE_BYTES - 1, DATASET_SECONDS
    elif path.startswith("/hooks/"):
        most = MAX_HOOK
    declared = Headers(scope=scope).get("content-length", "0")
    too_large = ProblemError("too-large", f"The body may have at most {most:,} bytes.")
    end = time.monotonic() + seconds
    size, over = 0, False

    async def bounded() -> Message:
        nonlocal size, over
        if over:  # the body has arrived; what comes now says that the client went away, whenever that is
            return await receive()
        if declared.isdecimal() and int(declared) > most:
            raise too_large
        try:
            async with asyncio.timeout(min(IDLE_SECONDS, end - time.monotonic())):
                message = await receive()
        except TimeoutError:
            raise ProblemError("request-timeout", "The body arrived too slowly.") from None
        if message["type"] == "http.request":
            size += len(message.get("body", b""))
            if size > most:
                raise too_large
            over = not message.get("more_body", False)
        return message

    return bounded


def _foreign(scope: Scope) -> str | None:
    """Say why a request cannot come from a program of this machine, None if it may.

    A web page that somebody visits can make their browser call loopback addresses; it cannot choose these headers.
    """
    headers = Headers(scope=scope)
    host = headers.get("host", "")
    if not _names_loopback(host):
        return "The Host header names another machine. Set FINETUNE_GATEWAY_TOKENS to serve others."
    origin = headers.get("origin")
    if scope["method"] not in _SAFE and origin is not None and origin.partition("://")[2] != host:
        return "The request comes from another site's page."
    return None


def _names_loopback(host: str) -> bool:
    try:
        return is_loopback(urlsplit(f"//{host}").hostname)
    except ValueError:
        return False
