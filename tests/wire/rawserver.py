"""A small TCP server that says exactly the bytes a test tells it to: for what no good HTTP server would ever send."""

import socket
import ssl
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self


class Heard:
    """One request as it came over the wire."""

    def __init__(self, head: bytes) -> None:
        line, *rest = head.decode("latin-1").split("\r\n")
        self.method, self.target, _ = line.split(" ", 2)
        self.pairs = [(name.strip().lower(), value.strip()) for name, _, value in (row.partition(":") for row in rest)]
        self.headers = dict(self.pairs)
        self.body = b""

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


class Wire:
    """The server's end of one connection."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.sock = sock
        self.number = number
        """Which connection this is, from 0."""
        self._buffer = b""

    def head(self) -> Heard | None:
        """Read the next request up to its body; None when the client closed."""
        while b"\r\n\r\n" not in self._buffer:
            data = self.sock.recv(65536)
            if not data:
                return None
            self._buffer += data
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        return Heard(head)

    def body(self, heard: Heard) -> bytes:
        """Read the body that Content-Length announces."""
        chunks, left = [], int(heard.headers.get("content-length", "0"))
        while left:
            data, self._buffer = self._buffer[:left] or self.sock.recv(min(left, 1 << 20)), self._buffer[left:]
            if not data:
                raise ConnectionError("the client left in the middle of its body")
            chunks.append(data)
            left -= len(data)
        heard.body = b"".join(chunks)
        return heard.body

    def swallow(self, heard: Heard) -> int:
        """Read a body of any length and forget it; return its length."""
        length = int(heard.headers.get("content-length", "0"))
        left = length - len(self._buffer)
        self._buffer = b""
        room = bytearray(1 << 20)
        while left:
            count = self.sock.recv_into(room, min(left, len(room)))
            if not count:
                raise ConnectionError("the client left in the middle of its body")
            left -= count
        return length

    def hear(self) -> Heard | None:
        """Read the next request whole."""
        heard = self.head()
        if heard is not None:
            self.body(heard)
        return heard

    def say(self, data: bytes) -> None:
        self.sock.sendall(data)

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        """Send a proper reply. Header names are given with underscores."""
        fields = {"Content-Length": str(len(body))} | {name.replace("_", "-"): text for name, text in headers.items()}
        lines = [f"HTTP/1.1 {status} Status", *(f"{name}: {value}" for name, value in fields.items())]
        self.say("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    def reset(self) -> None:
        """Close with a TCP reset, so that the client gets an error and not an end."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def wait_closed(self) -> None:
        """Say nothing until the client gives up."""
        while self.sock.recv(65536):
            pass


class RawServer:
    """Runs ``talk`` in a thread for each connection on a free loopback port. An error in it fails the test at exit."""

    def __init__(self, talk: Callable[[Wire], None], *, tls: ssl.SSLContext | None = None) -> None:
        self._talk = talk
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(120)  # longer than any test lasts
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.port}"
        self.connections = 0
        """How many were accepted; exact once the server has ended."""
        self._socks: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._errors: list[Exception] = []
        self._last: object = None
        """Where the connection comes from that tells the server to end."""

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with socket.socket() as wake:
            wake.settimeout(30)
            wake.bind(("127.0.0.1", 0))
            self._last = wake.getsockname()
            wake.connect(("127.0.0.1", self.port))
        self._threads[0].join(60)
        for sock in self._socks:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # it is closed already
        for thread in self._threads:
            thread.join(60)
        self._listener.close()
        if self._errors and error is None:
            raise self._errors[0]

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            sock, peer = self._listener.accept()
            if peer == self._last:
                sock.close()
                return
            sock.settimeout(30)
            self._socks.append(sock)
            self.connections += 1
            self._start(self._serve, sock, self.connections - 1)

    def _serve(self, sock: socket.socket, number: int) -> None:
        try:
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True)
            self._talk(Wire(sock, number))
        except OSError:
            return  # the client left: many tests make it
        except Exception as error:  # noqa: BLE001 - given to the test at exit
            self._errors.append(error)
        finally:
            sock.close()


def answering(answer: Callable[[Wire, Heard], None]) -> Callable[[Wire], None]:
    """Read requests one after the other, keep the connection open, and let ``answer`` reply to each."""

    def talk(wire: Wire) -> None:
        while (heard := wire.hear()) is not None:
            answer(wire, heard)

    return talk
