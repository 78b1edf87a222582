"""A server without a port, which is reached by a socket file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from finetune_queue.local.processes import Child
from finetune_queue.local.valkey import find_server


@contextmanager
def socket_server(folder: Path) -> Iterator[Path]:
    """Run one whose data lies in ``folder``; the file has a short path, as that of a socket may have some hundred
    characters only."""
    with TemporaryDirectory(prefix="valkey-") as short:
        path = Path(short, "redis.sock")
        options = ["--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(folder)]
        server = Child("Valkey", [str(find_server()), *options], env={}, cwd=folder, log=folder / "socket.log")
        server.start()
        try:
            server.wait_until(path.is_socket, timeout=15)
            yield path
        finally:
            server.stop()
