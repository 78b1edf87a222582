"""Name resolution that ends in time: the system's own can take half a minute and cannot be interrupted."""

import socket
import threading

Address = tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[str, int] | tuple[str, int, int, int]]


class _Lookup(threading.Thread):
    """One look-up; when nobody waits for it any more, it ends by itself."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(name="name-lookup", daemon=True)
        self._asked = (host, port)
        self.found: list[Address] = []
        self.error: socket.gaierror | None = None

    def run(self) -> None:
        host, port = self._asked
        try:
            self.found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)  # type: ignore[assignment]
        except socket.gaierror as error:
            self.error = error
        except (OSError, UnicodeError) as error:  # a label that is too long, or no resolver at all
            self.error = socket.gaierror(socket.EAI_FAIL, str(error))


def resolve(host: str, port: int, patience: float) -> list[Address]:
    """Return the addresses of ``host``, best first.

    Raises:
        socket.gaierror: it has none, or nobody can be asked now.
        TimeoutError: the answer took longer than ``patience`` seconds.
    """
    lookup = _Lookup(host, port)
    try:
        lookup.start()
    except RuntimeError as error:  # the system has no thread left
        raise socket.gaierror(socket.EAI_AGAIN, str(error)) from None
    lookup.join(patience)
    if lookup.is_alive():
        raise TimeoutError("name resolution")
    if lookup.error is not None:
        raise lookup.error
    return lookup.found
