"""Checksums: what a storage says of an object, and what we compute of its bytes."""

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from crc32c import CRC32CHash

from finetune_worker.transfer.beside import Beside

_WORTH_HANDING_OVER = 32 * 1024
"""Bytes; a smaller block is hashed sooner than it is handed over."""
_HANDED_OVER = 1024 * 1024
"""Bytes at a time: with fewer, a transfer and its digests wait for each other more often."""
_WORTH_A_THREAD = 4 * 1024 * 1024
"""Bytes; a smaller transfer is hashed sooner than a thread has started, while the network fills the socket's buffer."""

_MD5_ETAG = re.compile(r'"?([0-9a-f]{32})"?')
_GOOGLE = re.compile(r"\b(crc32c|md5)=([A-Za-z0-9+/]+=*)")
_BYTES = {"crc32c": 4, "md5": 16}


class Digest(Protocol):
    """A digest that bytes are fed to, as those of `hashlib`."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Take the next bytes."""

    def hexdigest(self) -> str:
        """Return the digest of the bytes so far."""


@dataclass(frozen=True, slots=True)
class Checksum:
    """The storage's own checksum of a whole object, in hex."""

    algorithm: Literal["crc32c", "md5"]
    value: str

    def start(self) -> Digest:
        """Return a digest that, fed with the object, gives `value`."""
        return CRC32CHash() if self.algorithm == "crc32c" else hashlib.md5(usedforsecurity=False)


def checksum_of(headers: Mapping[str, str]) -> Checksum | None:
    """Return the checksum that a reply's headers give, crc32c rather than md5, which takes 30 times as long.

    Read are x-goog-hash (Google: base64; composed objects have no md5) and S3's ETag.
    """
    found = dict(_GOOGLE.findall(headers.get("x-goog-hash", "")))
    for algorithm in ("crc32c", "md5"):
        value = _hex(found.get(algorithm, ""), _BYTES[algorithm])
        if value is not None:
            return Checksum(algorithm, value)
    # Elsewhere 32 hex digits may be anything: an ETag is an md5 only where S3 says so.
    md5 = etag_md5(headers) if any(name.lower().startswith("x-amz") for name in headers) else None
    return None if md5 is None else Checksum("md5", md5)


def _hex(text: str, length: int) -> str | None:
    try:
        value = base64.b64decode(text, validate=True)
    except binascii.Error:
        return None  # a checksum that cannot be read is none
    return value.hex() if len(value) == length else None


def etag_md5(headers: Mapping[str, str]) -> str | None:
    """Return the md5 that S3 gives as ETag to an object stored by one PUT; None for other and encrypted objects."""
    kms = headers.get("x-amz-server-side-encryption", "").startswith("aws:kms")
    if kms or "x-amz-server-side-encryption-customer-algorithm" in headers:
        return None
    found = _MD5_ETAG.fullmatch(headers.get("ETag", "").strip())
    return found[1] if found else None


class Hashing:
    """Feeds bytes to digests. After the first few megabytes each digest has a thread of its own (`hashlib` and crc32c
    release the GIL), so a transfer takes no longer than its network or its slowest digest. Memory is bounded: while the
    threads work on some blocks, as many bytes are gathered for them at most.
    """

    def __init__(self, *digests: Digest) -> None:
        self._digests = digests
        self._threads: list[tuple[Beside, list[Digest]]] = []
        for digest in digests:
            if self._threads and isinstance(digest, CRC32CHash):
                self._threads[-1][1].append(digest)  # sooner done than handed over
            else:
                self._threads.append((Beside("checksum"), [digest]))
        self._size = 0
        self._waiting: list[bytes | memoryview] = []

    def update(self, block: bytes | memoryview) -> None:
        """Take the next bytes, which must not change any more."""
        self._size += len(block)
        if len(block) < _WORTH_HANDING_OVER or self._size <= _WORTH_A_THREAD:
            self.wait()
            _feed(self._digests, [block])
            return
        self._waiting.append(block)
        if sum(map(len, self._waiting)) >= _HANDED_OVER:
            self._hand_over()

    def wait(self) -> None:
        """Return when the digests are those of all bytes."""
        if self._waiting:
            self._hand_over()
        for beside, _ in self._threads:
            beside.wait()

    def close(self) -> None:
        """End the threads."""
        for beside, _ in self._threads:
            beside.close()

    def _hand_over(self) -> None:
        blocks, self._waiting = self._waiting, []
        for beside, digests in self._threads:
            beside.start(_feed, digests, blocks)


def _feed(digests: Iterable[Digest], blocks: Iterable[bytes | memoryview]) -> None:
    for block in blocks:
        for digest in digests:
            digest.update(block)
