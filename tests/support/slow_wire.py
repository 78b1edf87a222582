"""A server as it is seen over a slow line: each of its answers comes later."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def slow_wire(port: int, delay: float) -> Iterator[int]:
    """Give the port at which the server of ``port`` (both on loopback) answers ``delay`` seconds later."""
    sockets: list[socket.socket] = []

    def forward(source: socket.socket, to: socket.socket, wait: float) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                time.sleep(wait)
                to.sendall(data)
        for each in (source, to):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def accept(listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near, _ = listening.accept()
                far = socket.create_connection(("127.0.0.1", port))
                sockets.extend((near, far))
                threading.Thread(target=forward, args=(near, far, 0.0), daemon=True).start()
                threading.Thread(target=forward, args=(far, near, delay), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, args=(listening,), daemon=True).start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
    for each in sockets:
        each.close()
