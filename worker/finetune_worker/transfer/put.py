"""The presigned PUT of a dataset, as the specification's curl does it (Fast Flux API, section 4; S3's rules for it)."""

import hashlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn
from urllib.parse import urlsplit

import requests
import structlog

from finetune_queue import tracing
from finetune_queue.progress import OnProgress
from finetune_queue.timed_sockets import Deadline
from finetune_worker.segmind.models import PresignedUpload
from finetune_worker.transfer.digests import Hashing, etag_md5
from finetune_worker.transfer.errors import NeedNewUrl, Refused, SourceChanged, TransferError, TryAgain
from finetune_worker.transfer.limits import TransferLimits, TransferMeter
from finetune_worker.wire.failures import WIRE_ERRORS, explain
from finetune_worker.wire.headers import retry_after
from finetune_worker.wire.session import BLOCK, open_session
from finetune_worker.wire.urls import UnsafeUrlError, require_callable

MAX_ERROR_BODY = 16 * 1024

# The storage's error codes (S3, "List of error codes") that another URL cures.
_URL_CODES = {
    "AccessDenied",
    "AuthorizationQueryParametersError",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}
_WAIT_CODES = {"InternalError", "OperationAborted", "RequestTimeout", "ServiceUnavailable", "SlowDown"}

_log = structlog.get_logger(__name__)


@tracing.span("upload dataset", kind="client")
def upload_presigned(
    upload: PresignedUpload,
    path: Path,
    *,
    sha256: str | None = None,
    limits: TransferLimits | None = None,
    on_progress: OnProgress | None = None,
    allow_loopback: bool = False,
) -> int:
    """PUT the file at ``path``, and return how many bytes it has.

    May be repeated after a failure: a second PUT replaces the first.

    Args:
        sha256: That of the file that was checked, in hex. If the file has another by now, the upload ends before its
            last block.
        allow_loopback: Let the URL be on this machine, with plain http (the sandbox).

    Raises:
        TryAgain: repeat with the same URL, while it is valid.
        NeedNewUrl: the URL ended or is refused.
        SourceChanged: the file is missing, empty, or changed under the upload.
        Refused: the storage will not take this file.
    """
    limits = limits or TransferLimits()
    url = upload.presigned_url.get_secret_value()
    headers = _headers(upload, allow_loopback=allow_loopback)
    try:
        if not path.is_file():  # to open a pipe would wait for its other end
            raise SourceChanged("source_missing", f"{path.name} is not a file, or is gone.")
        file = path.open("rb")
    except OSError as error:
        raise SourceChanged("source_missing", f"The file {path.name} cannot be read: {error.strerror}.") from None
    with file, open_session() as session:
        source = _Source(file, path, limits, on_progress, sha256=sha256)
        with closing(source):
            reply = _put(session, url, headers, source, limits)
    if not 200 <= reply.status < 300:
        raise _classify(reply)
    stored = etag_md5(reply.headers)
    if stored is not None and stored != source.md5:
        raise TryAgain("upload_damaged", "The storage's checksum is not that of the bytes sent.")
    source.finish()
    tracing.tell({"finetune.bytes": len(source)})
    return len(source)


def _headers(upload: PresignedUpload, *, allow_loopback: bool) -> dict[str, str]:
    """Return the headers of the PUT, or refuse before anything is sent what cannot succeed."""
    url = upload.presigned_url.get_secret_value()
    try:
        require_callable(url, allow_loopback=allow_loopback)
    except UnsafeUrlError as error:
        raise Refused("url_not_allowed", str(error)) from None
    headers = {"Content-Type": "application/zip", "x-amz-acl": "public-read"}
    unknown = upload.signed_headers - {name.lower() for name in headers} - {"host", "content-length"}
    if unknown:
        names = ", ".join(sorted(unknown))
        raise Refused("upload_url_unsupported", f"The upload URL is signed for unknown headers: {names}.")
    return headers


@dataclass(frozen=True, slots=True)
class _StorageReply:
    status: int
    headers: requests.structures.CaseInsensitiveDict[str]
    code: str
    host: str


def _put(
    session: requests.Session, url: str, headers: dict[str, str], source: "_Source", limits: TransferLimits
) -> _StorageReply:
    host = urlsplit(url).hostname or ""
    deadline = source.deadline
    began = time.monotonic()
    status, code = None, ""
    try:
        with deadline.running():
            response = session.put(
                url,
                data=source,
                headers=headers,
                timeout=(limits.connect_timeout, limits.stall_timeout),
                stream=True,
            )
            status = response.status_code
            with response:
                if not 200 <= status < 300:
                    code = _storage_code(response)
                return _StorageReply(status, response.headers, code, host)
    except _Stopped:
        failure = None
    except WIRE_ERRORS as error:
        failure = explain(error, host, deadline)
    finally:
        _log.info(
            "transfer_put",
            host=host,
            status=status,
            storage_code=code or None,
            size=len(source),
            sent=source.sent,
            duration_s=round(time.monotonic() - began, 3),
        )
    # Raised out here: the library's error holds the signed URL and must not be chained to ours.
    if failure is None:
        source.raise_failure()
    raise TryAgain(failure.code, failure.sentence)


def _storage_code(response: requests.Response) -> str:
    """Return the error code in the storage's XML, "" if there is none; searched, so that no XML can do harm."""
    body = b""
    try:
        while len(body) < MAX_ERROR_BODY and (chunk := response.raw.read1(MAX_ERROR_BODY - len(body))):
            body += chunk
    except WIRE_ERRORS:
        return ""  # the status is the answer
    found = re.search(rb"<Code>\s*([A-Za-z0-9.]{1,64})\s*</Code>", body)
    return found[1].decode() if found else ""


def _classify(reply: _StorageReply) -> TransferError:
    status, code = reply.status, reply.code
    said = f"{reply.host} answered {status}" + (f" {code}" if code else "")
    if status in {401, 403} or code in _URL_CODES or 300 <= status < 400:
        return NeedNewUrl("upload_url_refused", f"{said}: the upload URL expired or was refused.")
    if code in _WAIT_CODES or status in {408, 425, 429} or (status >= 500 and status != 501):
        return TryAgain("storage_busy", f"{said}: it cannot take the file now.", retry_after=retry_after(reply.headers))
    if status == 404:
        return Refused("storage_gone", f"{said}: the place to upload to does not exist.")
    if status == 413 or code == "EntityTooLarge":
        return Refused("too_large", f"{said}: the file is too large.")
    return Refused("upload_rejected", f"{said}: it does not take the file.")


class _Stopped(Exception):  # noqa: N818 - not an error of its own
    """This side stopped the upload; ``_Source.raise_failure`` says why."""


class _Source:
    """The file as a request's body, counted and hashed while it is read.

    Before it gives out the last block it checks that the file is still the one that was opened, and the one that was
    checked before the upload. If not, it stops: the server never gets a whole copy of a changed file.
    """

    def __init__(
        self, file: BinaryIO, path: Path, limits: TransferLimits, report: OnProgress | None, *, sha256: str | None
    ) -> None:
        self._file = file
        self._path = path
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._sha256 = hashlib.sha256()
        self._expected = sha256
        self._hashing = Hashing(self._md5, self._sha256)
        self._failure: BaseException | None = None
        self._state = self._look()
        self._size = self._state[0]
        if self._size == 0:
            raise SourceChanged("source_empty", f"The file {path.name} is empty.")
        self._meter = TransferMeter(limits, done=0, total=self._size, report=report)
        self._limits = limits
        self._whole = Deadline(limits.total_timeout, idle=limits.stall_timeout)
        self.deadline = Deadline(min(limits.longest_silence, limits.total_timeout), idle=limits.stall_timeout)
        """When the next block must have been sent; after the last block, when the reply must have begun."""

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.read, b"")  # requests streams what can be iterated; urllib3 then prefers `read`

    @property
    def sent(self) -> int:
        return self._meter.done

    @property
    def md5(self) -> str:
        self._hashing.wait()
        return self._md5.hexdigest()

    def read(self, size: int = BLOCK) -> bytes:
        try:
            return self._next(size)
        except BaseException as error:  # noqa: BLE001 - raised again, unchanged, by raise_failure
            # urllib3 takes an OSError from here for one of the socket's, and a broken pipe even for none.
            self._failure = error
            raise _Stopped from None

    def close(self) -> None:
        """End the thread that hashes; the digest can still be read."""
        self._hashing.close()

    def finish(self) -> None:
        """Report the end, after the storage has answered."""
        self._meter.tell()

    def raise_failure(self) -> NoReturn:
        """Raise what stopped the upload on this side, unchanged."""
        if self._failure is None:
            raise AssertionError("nothing stopped the upload")
        raise self._failure

    def _next(self, size: int) -> bytes:
        left = self._size - self._meter.done
        if left == 0:
            return b""
        block = self._file.read(min(size, left))
        self._hashing.update(block)
        if not block or (len(block) == left and self._changed()):
            raise SourceChanged("source_changed", f"The file {self._path.name} changed after it was checked.")
        self._meter.add(len(block))
        self.deadline.move(min(self._limits.longest_silence, self._whole.remaining))
        return block

    def _changed(self) -> bool:
        """Tell whether the file, of which all bytes were read, is another than was opened, or than was checked."""
        self._hashing.wait()
        other = self._expected is not None and self._sha256.hexdigest() != self._expected
        return other or self._look() != self._state

    def _look(self) -> tuple[int, int, int, int]:
        """Return what changes when the file does: size, time and inode of the open file, and whether the path still
        leads to it."""
        try:
            named, opened = self._path.stat(), os.fstat(self._file.fileno())
        except OSError as error:
            raise SourceChanged("source_missing", f"The file {self._path.name} is gone: {error.strerror}.") from None
        same = (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)
        return opened.st_size, opened.st_mtime_ns, opened.st_ino, same
