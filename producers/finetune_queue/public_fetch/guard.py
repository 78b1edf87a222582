"""Connections that keep to an `AddressPolicy`, whatever a name resolves to and wherever a server redirects.

The address filter is that of requests-hardened: it resolves a name once, judges the address and connects to that same
address, with the name still used for TLS and the Host header. What it lets through is refused here in addition. Each
hop of a redirect is a new request under the same rules. A total time limit covers everything from the connection to the
last byte, also against a server that sends a byte now and then.
"""

import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Self
from urllib.parse import urljoin

import requests
from requests.adapters import HTTPAdapter
from requests_hardened.ip_filter import InvalidIPAddress  # type: ignore[import-untyped]
from requests_hardened.ip_filter_adapter import IPFilterAdapter  # type: ignore[import-untyped]

from finetune_queue.public_fetch.addresses import AddressPolicy, check_url, is_public, shown_url
from finetune_queue.public_fetch.errors import FetchError

MAX_REDIRECTS = 3
CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0
_HEADERS = {"User-Agent": "finetune-queue", "Accept": "*/*", "Accept-Encoding": "identity", "Connection": "close"}


class Deadline:
    """Ends the connections it watches when the time is over, also in the middle of a read."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._watched: list[socket.socket] = []
        self.expired = False
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._timer.cancel()
        with self._lock:
            for each in self._watched:
                each.close()
            self._watched.clear()

    def watch(self, connection: socket.socket) -> None:
        """Takes a second handle on the connection, which stays good when TLS wraps the first."""
        with self._lock:
            self._watched.append(connection.dup())
        if self.expired:
            self._expire()

    def error(self) -> FetchError:
        return FetchError(
            "timed_out",
            f"The server took more than {self._seconds:g} s.",
            "Try again, or use a faster host.",
            retryable=True,
        )

    def _expire(self) -> None:
        self.expired = True
        with self._lock:
            for each in self._watched:
                # A connection that is already gone needs no end.
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)


class _WatchedAdapter(HTTPAdapter):
    """Tells a deadline of every connection that it opens."""

    def __init__(self, deadline: Deadline, **options: Any) -> None:
        self._deadline = deadline
        super().__init__(**options)

    def get_connection_with_tls_context(self, *args: Any, **options: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*args, **options)
        deadline = self._deadline
        plain: Any = type(pool).ConnectionCls

        class Watched(plain):  # type: ignore[misc]  # the class depends on the scheme
            def _new_conn(self) -> socket.socket:
                connection: socket.socket = super()._new_conn()
                deadline.watch(connection)
                return connection

        pool.ConnectionCls = Watched
        return pool


class GuardedAdapter(_WatchedAdapter, IPFilterAdapter):  # type: ignore[misc]  # the base has no types
    """Connects to public addresses over https on port 443; to loopback over anything, where the policy allows it."""

    def __init__(self, deadline: Deadline, policy: AddressPolicy, *, scheme: str) -> None:
        super().__init__(deadline, is_https_proto=scheme == "https", allow_loopback=policy.allow_loopback)

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> Any:
        host, pool = super().build_connection_pool_key_attributes(request, verify, cert)
        # The filter has replaced the name by the one address that will be connected to.
        address = ipaddress.ip_address(str(host["host"]).strip("[]"))
        usual = (host["scheme"], host["port"] or 443) == ("https", 443)
        if not (self._allow_loopback and address.is_loopback) and not (usual and is_public(address)):
            raise InvalidIPAddress(address)
        return host, pool


def _session(policy: AddressPolicy, deadline: Deadline) -> requests.Session:
    session = requests.Session()
    # Proxies and credentials from the environment would lead around the filter.
    session.trust_env = False
    session.headers.clear()
    session.headers.update(_HEADERS)
    for scheme in ("https", "http"):
        session.mount(f"{scheme}://", GuardedAdapter(deadline, policy, scheme=scheme))
    return session


@contextmanager
def opened(
    method: str,
    url: str,
    policy: AddressPolicy,
    *,
    seconds: float,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    redirects: int = MAX_REDIRECTS,
) -> Iterator[tuple[requests.Response, Deadline]]:
    """The answer to one request, after at most ``redirects``; its body is not read yet, and ends with the block.

    With ``redirects=0`` a redirect is the answer. What has a ``body`` should not follow any.

    Raises:
        FetchError: no answer; a status of 400 or more is one.
    """
    with Deadline(seconds) as deadline, _session(policy, deadline) as session:
        request = requests.Request(method, url, headers=dict(headers or {}), data=body)
        response = _follow(session, request, policy, deadline, redirects)
        with response:
            yield response, deadline


def _follow(
    session: requests.Session, request: requests.Request, policy: AddressPolicy, deadline: Deadline, redirects: int
) -> requests.Response:
    for _ in range(redirects + 1):
        url: str = request.url
        check_url(url, policy)
        response = _send(session, request, policy, deadline)
        location = response.headers.get("Location")
        if not response.is_redirect or location is None or not redirects:
            return response
        response.close()
        # The next hop gets a connection of its own: a server may close this one while it says otherwise.
        session.close()
        try:
            request.url = urljoin(url, location)
        except ValueError as error:
            raise FetchError("bad_url", f"{shown_url(url)} redirects to no URL.", "Give the direct address.") from error
    raise FetchError(
        "too_many_redirects",
        f"The URL redirects more than {redirects} times.",
        "Give the address that it leads to.",
    )


def _send(
    session: requests.Session, request: requests.Request, policy: AddressPolicy, deadline: Deadline
) -> requests.Response:
    where = shown_url(request.url)
    try:
        prepared = session.prepare_request(request)
        final = prepared.url or ""
        # What is sent may differ from what was given, as names are normalised.
        check_url(final, policy)
        if policy.trusts(final):
            session.mount(final, _WatchedAdapter(deadline))
        response = session.send(prepared, stream=True, allow_redirects=False, timeout=(CONNECT_SECONDS, READ_SECONDS))
    except InvalidIPAddress as error:
        raise FetchError(
            "address_refused",
            f"{where} does not lead to an address on the public internet.",
            "Give an https:// address that anybody on the internet can open.",
        ) from error
    except (requests.RequestException, UnicodeError, ValueError) as error:
        raise deadline.error() if deadline.expired else _translated(error, where) from error
    if deadline.expired:
        # Headers that were cut by the deadline look complete to the library.
        response.close()
        raise deadline.error()
    return response


def _translated(error: Exception, where: str) -> FetchError:
    match error:
        case requests.Timeout():
            return FetchError("timed_out", f"{where} does not answer in time.", "Try again later.", retryable=True)
        case requests.exceptions.SSLError() if type(_system_error(error)) in _HANDSHAKE:
            fix = "See that it serves https at this port."
            return FetchError("tls_failed", f"{where} cannot be reached: the TLS handshake failed.", fix)
        case requests.exceptions.SSLError():
            fix = "Mend the certificate, or use another host."
            return FetchError("tls_failed", f"{where} has no valid certificate for its name.", fix)
        case requests.ConnectionError():
            why, fix = _unreachable(_system_error(error))
            return FetchError("unreachable", f"{where} cannot be reached: {why}.", fix, retryable=True)
        case _:
            return FetchError("bad_url", f"{where} cannot be used ({type(error).__name__}).", "Check the URL.")


_HANDSHAKE = (ssl.SSLError, ssl.SSLEOFError, ssl.SSLZeroReturnError)


def _system_error(error: BaseException | None) -> BaseException | None:
    """Return what the system said below the libraries' errors, if it is one of those that tell a person something."""
    while error is not None and not isinstance(error, (socket.gaierror, ssl.SSLError, ConnectionError)):
        error = error.__cause__ or error.__context__
    return error


def _unreachable(error: BaseException | None) -> tuple[str, str]:
    """Say why there was no connection, and what to do."""
    match error:
        case socket.gaierror():
            return "its host name is not known", "Check the host name."
        case ConnectionRefusedError():
            return "the host takes no connection there", "See that its server runs, and check the port."
        case ConnectionError():
            return "the host broke the connection off", "Try again later; if it stays, see its server's log."
        case _:
            return "there is no way to the host", "See that others on the internet can open it."
