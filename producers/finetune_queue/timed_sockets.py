"""A deadline that holds for a whole HTTP exchange, not only for each single read of it.

`requests` knows a time to connect and a time between two bytes: a server that sends a byte before each of those runs
out holds a thread for ever. Here the socket itself knows the running call's deadline (by thread: calls are
synchronous), so that sending, waiting for the headers and reading the body all end by it.
"""

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Self

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import create_urllib3_context

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed import ReadableBuffer, WriteableBuffer

_running = threading.local()


class NoRedirects(requests.Session):
    """A session that takes no reply for a redirect, also where it is told not to follow any: `requests` would read and
    unpack the whole body of one to prepare the next request."""

    def get_redirect_target(self, resp: requests.Response) -> str | None:  # noqa: ARG002 - requests' signature
        """Return that there is none."""
        return None


class Deadline:
    """The end of one call, by the monotonic clock, and how long its connection may be silent.

    Args:
        total: Seconds from now to the end of the call.
        idle: Seconds that one send or receive may wait for the other side.
    """

    def __init__(self, total: float, *, idle: float) -> None:
        self.total = total
        self._end = time.monotonic() + total
        self.idle = idle
        self.sending = False
        """Whether a byte of the request may have left: False means that the server cannot have seen the call."""

    def move(self, total: float) -> None:
        """Let the call end ``total`` seconds from now."""
        self._end = time.monotonic() + total

    @property
    def remaining(self) -> float:
        """Seconds left; negative when it has passed."""
        return self._end - time.monotonic()

    @property
    def passed(self) -> bool:
        """Whether no time is left."""
        return self.remaining <= 0

    def patience(self, most: float) -> float:
        """Return how many seconds to wait now, at most ``most``.

        Raises:
            TimeoutError: the deadline has passed.
        """
        left = self.remaining
        if left <= 0:
            raise TimeoutError("the call's deadline has passed")
        return min(most, left)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Hold every socket that this thread uses inside the block to this deadline."""
        outer = current()
        _running.deadline = self
        try:
            yield
        finally:
            _running.deadline = outer


def current() -> Deadline | None:
    """Return the deadline that holds for this thread now."""
    return getattr(_running, "deadline", None)


class TimedSocket(socket.socket):
    """A socket whose sends and receives end by the running call's deadline."""

    @classmethod
    def of(cls, plain: socket.socket) -> Self:
        """Take over a connection that was opened as another socket."""
        patience = plain.gettimeout()
        timed = cls(fileno=plain.detach())
        timed.settimeout(patience)
        return timed

    def recv_into(self, buffer: "WriteableBuffer", nbytes: int | None = None, flags: int = 0) -> int:
        self._arm()
        return super().recv_into(buffer, nbytes or 0, flags)

    def send(self, data: "ReadableBuffer", flags: int = 0) -> int:
        self._arm(sending=True)
        return super().send(data, flags)

    def sendall(self, data: "ReadableBuffer", flags: int = 0) -> None:
        with memoryview(data) as view, view.cast("B") as rest:
            sent = 0
            while sent < len(rest):
                sent += self.send(rest[sent:], flags)

    def _arm(self, *, sending: bool = False) -> None:
        deadline = current()
        if deadline is not None:
            self.settimeout(deadline.patience(deadline.idle))
            deadline.sending = deadline.sending or sending


class TimedTLSSocket(TimedSocket, ssl.SSLSocket):
    """The same over TLS; made by an SSL context (its ``sslsocket_class``)."""

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002 - the signature of ssl
        deadline = current()
        if deadline is not None:
            self.settimeout(
                deadline.patience(self.gettimeout() or deadline.idle)
            )  # the socket's own time-out is the one to connect
        super().do_handshake(block)


def timed_tls_context() -> ssl.SSLContext:
    """Make a client's TLS context whose sockets keep to the running deadline, and read the authorities' certificates
    into it, which takes some 12 ms."""
    context = create_urllib3_context()
    context.sslsocket_class = TimedTLSSocket
    context.load_verify_locations(requests.utils.DEFAULT_CA_BUNDLE_PATH)
    return context


class TimedTLSAdapter(HTTPAdapter):
    """An adapter all of whose connections have one TLS context, which decides whom they trust.

    requests lets urllib3 read the authorities' certificates into the context again for each new connection. ``verify``
    of a session or a request has no effect here.
    """

    tls_context: "ClassVar[Callable[[], ssl.SSLContext]]"
    """Returns the context; a function, as most processes never need one."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, ssl_context=type(self).tls_context(), **options)

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:  # noqa: ARG002 - requests' signature
        conn.cert_reqs = "CERT_REQUIRED"
