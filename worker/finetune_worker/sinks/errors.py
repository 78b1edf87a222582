"""The one error of a delivery."""

import socket
from ssl import SSLCertVerificationError

from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

_NO_CONNECTION = (
    *(NewConnectionError, ConnectTimeoutError, ConnectionRefusedError, socket.gaierror),
    SSLCertVerificationError,  # the other errors of TLS may also come after the request, from a server that hangs up
)


class DeliveryError(Exception):
    """A sink did not take an event.

    Args:
        sentence: For people; names no URL.
        status: The status of the HTTP answer, if there was one.
        unreachable: Nothing gets through to the sink now, so other jobs' events for it need not be tried either.
        whole_origin: Nor events for any other sink of its origin: the attempt failed before it said which it is for.
        hopeless: The sink will not take the event later either.
        gone: The sink said that it wants no more events of the job.
        after: Seconds for which the sink asked to be left alone.
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
    """Tell whether no connection was made, by the causes of a library's error. In doubt there was one."""
    while error is not None:
        if isinstance(error, _NO_CONNECTION):
            return True
        error = error.__cause__ or error.__context__
    return False
