"""Connections that keep to an `AddressPolicy`, whatever a name resolves to and wherever a server redirects.

The address filter is that of requests-hardened: it resolves a name once, judges the address and connects to that same
address, with the name still used for TLS and the Host header. The class here also refuses what that filter lets
through but `addresses` does not. Each hop of a redirect is a new request under the same rules. A total time limit
covers everything from the connection to the last byte, also against a server that sends a byte now and then.
"""

import ipaddress
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any
from urllib.parse import urljoin

import requests
from requests_hardened.ip_filter import InvalidIPAddress  # type: ignore[import-untyped]
from requests_hardened.ip_filter_adapter import IPFilterAdapter  # type: ignore[import-untyped]

from finetune_queue.public_fetch.addresses import AddressPolicy, check_url, is_public, shown_url
from finetune_queue.public_fetch.errors import FetchError
from finetune_queue.timed_sockets import Deadline, NoRedirects, TimedSocket, TimedTLSAdapter, timed_tls_context

MAX_REDIRECTS = 3
CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0
_HEADERS = {"User-Agent": "finetune-queue", "Accept": "*/*", "Accept-Encoding": "identity", "Connection": "close"}


@cache
def tls_context() -> ssl.SSLContext:
    """Return the process's TLS context for public URLs. No other connections may share it: where the address filter has
    replaced the host name by an address, urllib3 turns off the context's own check of the name (``check_hostname``) and
    compares the certificate with the name itself."""
    return timed_tls_context()


class _TimedAdapter(TimedTLSAdapter):
    """Opens connections that keep to the running deadline."""

    tls_context = staticmethod(tls_context)

    def get_connection_with_tls_context(self, *args: Any, **options: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*args, **options)
        plain: Any = type(pool).ConnectionCls

        class Timed(plain):  # type: ignore[misc]  # the class depends on the scheme
            def _new_conn(self) -> socket.socket:
                return TimedSocket.of(super()._new_conn())

        pool.ConnectionCls = Timed
        return pool


class GuardedAdapter(_TimedAdapter, IPFilterAdapter):  # type: ignore[misc]  # the base has no types
    """Connects to public addresses over https on port 443; to loopback over anything, where the policy allows it."""

    def __init__(self, policy: AddressPolicy, *, scheme: str) -> None:
        https = scheme == "https"
        super().__init__(is_https_proto=https, allow_loopback=policy.allow_loopback)  # type: ignore[call-arg]  # as above

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> Any:
        host, pool = super().build_connection_pool_key_attributes(request, verify, cert)
        # The filter has replaced the name by the one address that will be connected to.
        address = ipaddress.ip_address(str(host["host"]).strip("[]"))
        usual = (host["scheme"], host["port"] or 443) == ("https", 443)
        if not (self._allow_loopback and address.is_loopback) and not (usual and is_public(address)):
            raise InvalidIPAddress(address)
        return host, pool


def _session(policy: AddressPolicy) -> requests.Session:
    session = NoRedirects()
    # Proxies and credentials from the environment would lead around the filter.
    session.trust_env = False
    session.headers.clear()
    session.headers.update(_HEADERS)
    for scheme in ("https", "http"):
        session.mount(f"{scheme}://", GuardedAdapter(policy, scheme=scheme))
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
    """Make a request, follow at most ``redirects``, and yield the response with the deadline that holds for the block.

    The response's body is not read yet. With ``redirects=0`` a redirect is itself the response; with a ``body`` none
    should be followed.

    Raises:
        FetchError: there was no response. One with a status of 400 or more is no error here.
    """
    deadline = Deadline(seconds, idle=READ_SECONDS)
    with deadline.running(), _session(policy) as session:
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
        if not response.is_redirect or not redirects:
            return response
        response.close()
        # The next hop gets a connection of its own: a server may close this one while it says otherwise.
        session.close()
        try:
            request.url = urljoin(url, response.headers["Location"])
        except ValueError as error:
            raise FetchError(
                "bad_url", f"{shown_url(url)} redirects without a usable URL.", "Give the direct address."
            ) from error
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
            session.mount(final, _TimedAdapter())
        # The host of a trusted origin may have several addresses, each of which may be silent for so long.
        connect = min(CONNECT_SECONDS, deadline.total / 3)
        response = session.send(prepared, stream=True, allow_redirects=False, timeout=(connect, READ_SECONDS))
    except InvalidIPAddress as error:
        raise FetchError(
            "address_refused",
            f"{where} does not lead to an address on the public internet.",
            "Give an https:// address that anybody on the internet can open.",
        ) from error
    except (requests.RequestException, UnicodeError, ValueError) as error:
        raise too_slow(deadline) if deadline.passed else _translated(error, where) from error
    return response


def too_slow(deadline: Deadline) -> FetchError:
    """What to say when the deadline has passed."""
    return FetchError(
        "timed_out",
        f"The server took more than {deadline.total:g} s.",
        "Try again, or use a faster host.",
        retryable=True,
    )


def _translated(error: Exception, where: str) -> FetchError:
    match error:
        case requests.Timeout():
            return FetchError("timed_out", f"{where} does not answer in time.", "Try again later.", retryable=True)
        case requests.exceptions.SSLError() if type(_system_error(error)) in _HANDSHAKE:
            fix = "Check that it serves https at this port."
            return FetchError("tls_failed", f"{where} cannot be reached: the TLS handshake failed.", fix)
        case requests.exceptions.SSLError():
            fix = "Fix the certificate, or use another host."
            return FetchError("tls_failed", f"{where} has no valid certificate for its name.", fix)
        case requests.ConnectionError():
            why, fix = _unreachable(_system_error(error))
            return FetchError("unreachable", f"{where} cannot be reached: {why}.", fix, retryable=True)
        case _:
            return FetchError("bad_url", f"{where} cannot be used ({type(error).__name__}).", "Check the URL.")


# By exact type: the error of a certificate (SSLCertVerificationError) is a subclass of the first.
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
            return "the host refuses connections there", "Check that its server is running, and the port."
        case ConnectionError():
            return "the host dropped the connection", "Try again later; if it persists, see its server's log."
        case _:
            return "there is no route to the host", "Check that others on the internet can open it."
