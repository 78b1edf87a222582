"""What a failed exchange means: a stable code and a sentence, from what requests, urllib3 and the system raise."""

import ssl
from dataclasses import dataclass

import requests
import urllib3.exceptions as u3

from finetune_queue.timed_sockets import Deadline

WIRE_ERRORS = (requests.RequestException, u3.HTTPError, OSError)
"""What sending a request and reading its reply can raise. Their texts hold full URLs: never pass them on."""

TIMED_OUT = frozenset({"call_timeout", "read_timeout"})
"""The codes of exchanges that were given up while the other side was silent."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no (whole) reply. ``code`` is stable; ``sentence`` is for people."""

    code: str
    sentence: str


_Row = tuple[tuple[type[BaseException], ...], str, str]

# The order matters: urllib3's name error is a NewConnectionError, and that is a ConnectTimeoutError.
_CONNECTING: tuple[_Row, ...] = (
    ((u3.NameResolutionError,), "dns_failed", "The name {host} could not be resolved."),
    (
        (u3.SSLError, ssl.SSLError, ssl.CertificateError, requests.exceptions.SSLError),
        "tls_failed",
        "No secure connection to {host}: its certificate or the TLS handshake failed.",
    ),
    ((u3.NewConnectionError,), "connect_failed", "{host} refused the connection or could not be reached."),
    (
        (u3.ConnectTimeoutError, requests.ConnectTimeout),
        "connect_timeout",
        "{host} did not answer the attempt to connect in time.",
    ),
)
_TALKING: tuple[_Row, ...] = (
    ((u3.ReadTimeoutError, requests.ReadTimeout, TimeoutError), "read_timeout", "{host} was silent for {idle:g} s."),
    (
        (u3.DecodeError, requests.exceptions.ContentDecodingError),
        "unreadable_reply",
        "The reply of {host} could not be decompressed.",
    ),
)


def explain(error: BaseException, host: str, deadline: Deadline) -> Failure:
    """Classify what ended an exchange with ``host``."""
    causes = _causes(error)
    for kinds, code, sentence in _CONNECTING:
        if any(isinstance(cause, kinds) for cause in causes):
            return Failure(code, sentence.format(host=host))
    if deadline.passed:
        return Failure("call_timeout", f"The exchange with {host} was not over by its deadline.")
    for kinds, code, sentence in _TALKING:
        if any(isinstance(cause, kinds) for cause in causes):
            return Failure(code, sentence.format(host=host, idle=deadline.idle))
    return Failure("connection_lost", f"The connection to {host} broke before the reply was whole.")


def _causes(error: BaseException | None) -> list[BaseException]:
    """The error, what its library wrapped (`args`, MaxRetryError's `reason`) and what it was raised from."""
    found: list[BaseException] = []
    waiting = [error]
    while waiting and len(found) < 20:
        item = waiting.pop()
        if not isinstance(item, BaseException) or any(item is seen for seen in found):
            continue
        found.append(item)
        waiting += [*item.args, getattr(item, "reason", None), item.__cause__]
    return found
