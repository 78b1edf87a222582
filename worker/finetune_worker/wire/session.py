"""The one way to a `requests` session: no retries, redirects or cookies, and nothing read from the environment."""

import logging
import socket
import ssl
from functools import cache
from http.cookiejar import DefaultCookiePolicy
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError

from finetune_queue.timed_sockets import NoRedirects, TimedSocket, TimedTLSAdapter, current, timed_tls_context
from finetune_worker.wire.names import resolve
from finetune_worker.wire.urls import safe_url, without_queries

if TYPE_CHECKING:
    from urllib3._base_connection import BaseHTTPConnection

USER_AGENT = f"finetune-queue/{version('finetune-queue')}"

BLOCK = 256 * 1024
"""Bytes of a body that are read from a file and sent at a time."""

MOST_CONNECTING = 3
"""How many times the time for one address it may take to connect to a host with many: a storage has eight, and none may
answer. More than three addresses share this time evenly."""


class _Timed(HTTPConnection):
    """Opens sockets that keep to the running call's deadline."""

    def _new_conn(self) -> socket.socket:
        try:
            found = resolve(self._dns_host, self.port, self._patience())
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from None
        except TimeoutError:
            raise ConnectTimeoutError(self, f"Resolving {self.host} timed out.") from None
        share = min(1.0, MOST_CONNECTING / max(1, len(found)))
        last: OSError = OSError("the name has no address")
        for family, kind, protocol, _, address in found:
            sock = TimedSocket(family, kind, protocol)
            try:
                for option in self.socket_options or ():
                    sock.setsockopt(*option)
                sock.settimeout(share * self._patience())
                sock.connect(address)
                sock.settimeout(self._patience())  # for a handshake
            except OSError as error:
                sock.close()
                last = error
            except BaseException:
                sock.close()
                raise
            else:
                return sock
        if isinstance(last, TimeoutError):
            raise ConnectTimeoutError(self, f"Connecting to {self.host} timed out.") from None
        raise NewConnectionError(self, f"No connection to {self.host}: {last.strerror or 'refused'}.") from None

    def _patience(self) -> float:
        deadline, most = current(), float(self.timeout or 0)
        return most if deadline is None else deadline.patience(most)


class _TimedTLS(_Timed, HTTPSConnection):
    """The same for https."""


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Timed


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _TimedTLS


class _OneUse(HTTPConnectionPool):
    """Opens a connection for each call and closes it after, though the server might keep it open."""

    def _get_conn(self, timeout: float | None = None) -> "BaseHTTPConnection":  # noqa: ARG002 - urllib3's signature
        return self._new_conn()

    def _put_conn(self, conn: "BaseHTTPConnection | None") -> None:
        if conn is not None:
            conn.close()


class _OneUsePool(_OneUse, _Pool):
    """Plain connections for one call each."""


class _OneUseTLSPool(_OneUse, _TLSPool):
    """TLS connections for one call each."""


@cache
def tls_context() -> ssl.SSLContext:
    """Return the process's TLS context for calls and transfers."""
    return timed_tls_context()


class _Adapter(TimedTLSAdapter):
    """urllib3 with the pools above. ``max_retries`` stays 0: calling again is a decision, never a default."""

    tls_context = staticmethod(tls_context)

    def __init__(self, pools: dict[str, type[HTTPConnectionPool]], kept: int) -> None:
        self._pools = pools
        super().__init__(pool_connections=4, pool_maxsize=kept)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **kwargs: Any) -> None:  # noqa: FBT001, FBT002 - requests' signature
        super().init_poolmanager(connections, maxsize, block, blocksize=BLOCK, **kwargs)
        self.poolmanager.pool_classes_by_scheme = self._pools


def one_use_adapter() -> HTTPAdapter:
    """Return an adapter that opens a connection for each call and closes it after."""
    return _Adapter({"http": _OneUsePool, "https": _OneUseTLSPool}, 1)


class _NoQueries(logging.Filter):
    """Cuts the queries, which may hold signatures, out of the paths that urllib3 logs at DEBUG."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(_shown(value) if isinstance(value, str) else value for value in record.args)
        return True


def _shown(text: str) -> str:
    return safe_url(text) if text.startswith("/") else without_queries(text)


_no_queries = _NoQueries()


def open_session(pool_size: int = 1) -> requests.Session:
    """Return a session that is safe to share between threads, and keeps ``pool_size`` connections to a host. The caller
    closes it."""
    for name in ("urllib3.connectionpool", "urllib3.connection"):
        logging.getLogger(name).addFilter(_no_queries)
    session = NoRedirects()
    session.trust_env = False
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
    session.headers.clear()
    session.headers.update({"User-Agent": USER_AGENT, "Accept-Encoding": "identity"})
    adapter = _Adapter({"http": _Pool, "https": _TLSPool}, pool_size)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session
