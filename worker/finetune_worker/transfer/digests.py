"""Checksums: what a storage says of an object, and what we compute of its bytes."""

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from finetune_worker.transfer.crc32c import Crc32c

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


class Hashes:
    """Digests of bytes as they pass: sha256 and md5 always, the slower crc32c only if it is all there is to compare."""

    def __init__(self, expect: Expected) -> None:
        self._expect = expect
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._crc = Crc32c() if expect.crc32c is not None and expect.md5 is None else None

    def update(self, data: bytes | memoryview) -> None:
        self._sha256.update(data)
        self._md5.update(data)
        if self._crc is not None:
            self._crc.update(data)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    @property
    def md5(self) -> str:
        return self._md5.hexdigest()

    @property
    def checked(self) -> str | None:
        """Which of the storage's checksums `mismatch` compares."""
        return "md5" if self._expect.md5 is not None else "crc32c" if self._crc is not None else None

    def mismatch(self) -> str | None:
        """Return the name of the checksum that differs from the storage's, None if all that it sent agree."""
        if self._expect.md5 is not None and self.md5 != self._expect.md5:
            return "md5"
        if self._crc is not None and self._crc.hexdigest() != self._expect.crc32c:
            return "crc32c"
        return None
