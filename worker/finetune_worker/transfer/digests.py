"""Checksums: what a storage says of an object, and what we compute of its bytes."""

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from finetune_worker.transfer.crc32c import Crc32c

WORTH_A_THREAD = 32 * 1024
"""Bytes; a smaller block is hashed sooner than it is handed over."""

_MD5_ETAG = re.compile(r'"?([0-9a-f]{32})"?')


@dataclass(frozen=True, slots=True)
class Expected:
    """The storage's own checksums of a whole object, in hex; None where it sent none."""

    md5: str | None = None
    crc32c: str | None = None


def expected(headers: Mapping[str, str]) -> Expected:
    """Read x-goog-hash (Google: base64 md5 and crc32c, the md5 missing for composed objects), or an S3 ETag."""
    found: dict[str, str] = {}
    for part in headers.get("x-goog-hash", "").split(","):
        name, _, text = part.strip().partition("=")
        try:
            found[name] = base64.b64decode(text, validate=True).hex()
        except binascii.Error:
            continue  # a checksum that cannot be read is none
    md5 = found.get("md5", "")
    crc = found.get("crc32c", "")
    # Elsewhere 32 hex digits may be anything: an ETag is an md5 only where S3 says so.
    amazon = any(name.lower().startswith("x-amz") for name in headers)
    return Expected(
        md5=md5 if len(md5) == 32 else etag_md5(headers) if amazon else None,
        crc32c=crc if len(crc) == 8 else None,
    )


def etag_md5(headers: Mapping[str, str]) -> str | None:
    """Return the md5 that S3 gives as ETag to an object stored by one PUT; None for other and encrypted objects."""
    kms = headers.get("x-amz-server-side-encryption", "").startswith("aws:kms")
    if kms or "x-amz-server-side-encryption-customer-algorithm" in headers:
        return None
    found = _MD5_ETAG.fullmatch(headers.get("ETag", "").strip())
    return found[1] if found else None


class Beside:
    """Runs ``step`` on one block after the other in a thread of its own, so that a checksum costs a transfer no time.

    At most one block is in work: memory stays flat. `hashlib` lets other threads run while it hashes a block.
    """

    def __init__(self, step: Callable[[bytes | memoryview], None]) -> None:
        self._step = step
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checksum")  # started by the first large block
        self._running: Future[None] | None = None

    def feed(self, block: bytes | memoryview) -> None:
        """Take the next block, which must not change any more."""
        self.wait()
        if len(block) < WORTH_A_THREAD:
            self._step(block)
        else:
            self._running = self._thread.submit(self._step, block)

    def wait(self) -> None:
        """Return when all blocks are done."""
        if self._running is not None:
            self._running.result()
            self._running = None

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()


class Hashes:
    """Digests of bytes as they pass: sha256 and md5 always, the slower crc32c only if it is all there is to compare."""

    def __init__(self, expect: Expected) -> None:
        self._expect = expect
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._crc = Crc32c() if expect.crc32c is not None and expect.md5 is None else None
        self._beside = Beside(self._step)

    def update(self, data: bytes | memoryview) -> None:
        """Take the next bytes, which must not change any more."""
        self._beside.feed(data)
        self._sha256.update(data)

    def close(self) -> None:
        """End the thread that hashes; the digests can still be read."""
        self._beside.close()

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    @property
    def md5(self) -> str:
        self._beside.wait()
        return self._md5.hexdigest()

    @property
    def checked(self) -> str | None:
        """Which of the storage's checksums `mismatch` compares."""
        return "md5" if self._expect.md5 is not None else "crc32c" if self._crc is not None else None

    def mismatch(self) -> str | None:
        """Return the name of the checksum that differs from the storage's, None if all that it sent agree."""
        if self._expect.md5 is not None and self.md5 != self._expect.md5:
            return "md5"
        self._beside.wait()
        if self._crc is not None and self._crc.hexdigest() != self._expect.crc32c:
            return "crc32c"
        return None

    def _step(self, data: bytes | memoryview) -> None:
        self._md5.update(data)
        if self._crc is not None:
            self._crc.update(data)
