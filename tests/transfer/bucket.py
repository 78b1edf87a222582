"""An object behind a URL, whose server a test can let fail, and downloads of it."""

import base64
import hashlib
import re
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from crc32c import CRC32CHash

from finetune_worker.transfer.download import Download, download
from finetune_worker.transfer.errors import TransferError
from finetune_worker.transfer.limits import TransferLimits
from wire.rawserver import Heard, RawServer, Wire

CONTENT = hashlib.shake_128(b"weights").digest(600_007)
OTHER = hashlib.shake_128(b"other").digest(600_007)
SIGNATURE = "feed-face"  # by name below: a traceback shows source lines
QUICK = TransferLimits(connect_timeout=2, stall_timeout=5, total_timeout=20)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def google_hash(data: bytes, *names: str) -> str:
    digests = {"crc32c": CRC32CHash(data).digest(), "md5": hashlib.md5(data).digest()}
    return ",".join(f"{name}={base64.b64encode(digests[name]).decode()}" for name in names)


class Bucket:
    """An object behind a URL, with RFC 9110's ranges, and faults that a test turns on."""

    def __init__(self, content: bytes = CONTENT) -> None:
        self.content = content
        self.etag: str | None = '"v1"'
        self.headers: dict[str, str] = {}
        self.heard: list[Heard] = []
        self.ranges = True
        self.cuts: list[int] = []
        """After how many bytes of the body each reply in turn breaks off; then none does."""
        self.reset = False
        self.answer: Callable[[Wire, Heard], bool] | None = None
        """Answers in the bucket's place if it returns True."""

    def talk(self, wire: Wire) -> None:
        heard = wire.hear()
        if heard is None:
            return
        self.heard.append(heard)
        if self.answer is not None and self.answer(wire, heard):
            return
        start, status, total = 0, 200, len(self.content)
        fields = dict(self.headers)
        if self.etag is not None:
            fields["ETag"] = self.etag
        asked = re.fullmatch(r"bytes=(\d+)-", heard.headers.get("range", ""))
        if asked and self.ranges and heard.headers.get("if-range", self.etag) == self.etag:
            start, status = int(asked[1]), 206
            fields["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
            if start >= total:
                wire.reply(416, Content_Range=f"bytes */{total}")
                return
        body = self.content[start:]
        fields = {"Content-Length": str(len(body))} | fields
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value)
        wire.say(f"HTTP/1.1 {status} X\r\n{lines}\r\n".encode())
        cut = self.cuts.pop(0) if self.cuts else None
        wire.say(body[:cut])
        if cut is not None and self.reset:
            wire.reset()


def get(server: RawServer, part: Path, **more: object) -> Download:
    options: dict[str, object] = {"allow_loopback": True, "limits": QUICK} | more
    return download(f"{server.url}/m.safetensors?sig={SIGNATURE}", part, **options)  # type: ignore[arg-type]


def failure(server: RawServer, part: Path, **more: object) -> TransferError:
    with pytest.raises(TransferError) as caught:
        get(server, part, **more)
    shown = "".join(traceback.format_exception(caught.value)) + repr(vars(caught.value))
    assert SIGNATURE not in shown
    assert caught.value.__cause__ is None
    return caught.value
