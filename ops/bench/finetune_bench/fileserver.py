"""A storage host as fast as the kernel: `python -m finetune_bench.fileserver FOLDER [BYTES_PER_SECOND]`.

GET sends a file by sendfile(2); PUT takes a body and forgets it. `FILE.headers` beside a file holds the headers that
its replies carry (JSON). With a rate, bytes go no faster than that, in either direction: a link of that speed. It
prints its URL and serves until it is ended.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PIECE = 256 * 1024


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # with it, `Expect: 100-continue` is answered, which curl waits for
    folder: Path
    rate: float | None

    def do_GET(self) -> None:
        path = self._path()
        with path.open("rb") as file:
            size = path.stat().st_size
            self._head(path, size)
            for start, length in self._pieces(size):
                sent = 0
                while sent < length:
                    sent += os.sendfile(self.connection.fileno(), file.fileno(), start + sent, length - sent)

    def do_PUT(self) -> None:
        room = memoryview(bytearray(PIECE))
        for _, length in self._pieces(int(self.headers["Content-Length"])):
            got = 0
            while got < length:
                count = self.rfile.readinto(room[: length - got])
                if not count:
                    return
                got += count
        self._head(self._path(), 0)

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _path(self) -> Path:
        return self.folder / Path(self.path.partition("?")[0]).name

    def _head(self, path: Path, length: int) -> None:
        headers = json.loads(path.with_name(path.name + ".headers").read_text())
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()

    def _pieces(self, size: int) -> Iterator[tuple[int, int]]:
        """Cut a body into pieces, each handed out when the link would be free for it."""
        began = time.monotonic()
        for start in range(0, size, PIECE if self.rate else 64 * PIECE):
            if self.rate:
                time.sleep(max(0.0, began + start / self.rate - time.monotonic()))
            yield start, min(PIECE if self.rate else 64 * PIECE, size - start)


def main() -> None:
    """Serve the folder."""
    _Handler.folder = Path(sys.argv[1])
    _Handler.rate = float(sys.argv[2]) if len(sys.argv) > 2 else None
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        sys.stdout.write(f"http://127.0.0.1:{server.server_port}\n")
        sys.stdout.flush()
        server.serve_forever()


if __name__ == "__main__":
    main()
