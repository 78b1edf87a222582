"""The one error of a delivery."""

import socket
from ssl import SSLCertVerificationError

from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

_NO_CONNECTION = (
    *(NewConnectionError, ConnectTimeoutError, ConnectionRefusedError, socket.gaierror),
    SSLCertVerificationError,  # the other errors of TLS may also come after the request, from a server that hangs up
)


class DeliveryError(Exception):
    """A sink did not take an event; the sentence names no URL.

    ``status`` is that of an HTTP answer. ``unreachable``: nothing gets through to the sink now, so that the deliveries
    of others to it need not be tried either, for ``after`` seconds if it said so. ``whole_origin``: nor to any other
    sink of its origin, as it failed before anything told the one from the other. ``hopeless``: it will not take the
    event later either. ``gone``: it said that it wants none of the job's events any more.
    """

    def __init__(
        self,
        sentence: str,
        *,
        status: int | None = None,
        unreachable: bool = False,
        whole_origin: bool = False,
        hopeless: bool = False,
        gone: bool = False,
        after: float | None = None,
    ) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.status = status
        self.unreachable = unreachable
        self.whole_origin = whole_origin
        self.hopeless = hopeless
        self.gone = gone
        self.after = after


def never_connected(error: BaseException | None) -> bool:
    """Tell whether there was no connection, by what is below a library's error. In doubt there was one."""
    while error is not None:
        if isinstance(error, _NO_CONNECTION):
            return True
        error = error.__cause__ or error.__context__
    return False
