"""The download of weights (Fast Flux API, section 6): resumable, bounded, checked by the storage's own checksum.

What is kept of a broken download is one object's bytes from its start, never a mixture: the rest is asked for with
If-Range and the object's strong ETag (RFC 9110, 13.1.5), so that the storage sends a changed object whole, and the
reply must say that it continues exactly there. Without a strong ETag every download starts at the first byte.
"""

import re
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import requests
import structlog

from finetune_queue import tracing
from finetune_queue.progress import OnProgress
from finetune_queue.timed_sockets import Deadline
from finetune_worker.transfer.digests import checksum_of
from finetune_worker.transfer.errors import NeedNewUrl, NoAnswer, Refused, StartOver, TransferError, TryAgain
from finetune_worker.transfer.limits import TransferLimits, TransferMeter
from finetune_worker.transfer.partfile import Known, PartFile
from finetune_worker.wire.failures import WIRE_ERRORS, explain
from finetune_worker.wire.headers import retry_after
from finetune_worker.wire.session import open_session
from finetune_worker.wire.urls import UnsafeUrlError, require_callable, safe_url

MAX_REDIRECTS = 3

GAIN = 0.01
"""The part of its object that a download must have brought before it broke off, to be no try that failed. A part file
is whole after a hundred of these at most."""

BLOCK = 1024 * 1024
"""Bytes that are taken from the connection at most at a time."""

_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Download:
    """A whole file. ``checked`` says which of the storage's checksums it was compared with, None if it sent none."""

    size: int
    sha256: str
    checked: str | None


@tracing.span("download weights", kind="client")
def download(
    url: str,
    part: Path,
    *,
    limits: TransferLimits | None = None,
    on_progress: OnProgress | None = None,
    allow_loopback: bool = False,
) -> Download:
    """Download ``url`` to ``part``, going on where an earlier call broke off, and bring it to the disk.

    Whatever ends the call early, including an exception from ``on_progress``, leaves a part that the next call takes
    up. The caller stores a copy of a whole part and then calls `discard`.

    Args:
        part: A file that is this download's own; its folder exists. A `.json` file is kept beside it.
        allow_loopback: Let the URL be on this machine, with plain http (the sandbox).

    Raises:
        TryAgain: the connection broke; what came is kept, and ``gained`` if that is `GAIN` of the object.
        NoAnswer: the storage is away or busy; what came is kept.
        NeedNewUrl: the storage refuses the URL (401, 403); what came is kept.
        StartOver: the object changed or came damaged; what came is deleted.
        NoRoom: the disk is full; what came is kept. Or it fails, and nobody knows what it has.
        Refused: the object is gone or too large, or the URL is not one to call.
    """
    done = _Downloader(url, limits or TransferLimits(), on_progress, allow_loopback=allow_loopback).run(part)
    tracing.tell({"finetune.bytes": done.size})
    return done


class _Downloader:
    def __init__(self, url: str, limits: TransferLimits, report: OnProgress | None, *, allow_loopback: bool) -> None:
        self._url = url
        self._limits = limits
        self._report = report
        self._allow_loopback = allow_loopback
        self._deadline = Deadline(limits.total_timeout, idle=limits.stall_timeout)
        self._status: int | None = None
        self._host = ""

    def run(self, path: Path) -> Download:
        began = time.monotonic()
        with PartFile(path, self._url, self._report) as part:
            kept, asks = part.size, not part.whole
            try:
                meter = self._fetch(part)
                done = _finish(part)
            except TryAgain as error:
                error.gained = part.known is not None and part.size - kept >= GAIN * part.known.total
                raise
            finally:
                told = {"kept": kept, "size": part.size, "duration_s": round(time.monotonic() - began, 3)}
                if asks:
                    _log.info("transfer_get", host=self._host, status=self._status, **told)
                else:
                    _log.info("transfer_kept", **told)
            meter.tell()
            return done

    def _fetch(self, part: PartFile) -> TransferMeter:
        """Bring the part to its full length."""
        if part.whole:
            # A worker died after the last byte, before the file was stored. Do not ask: the URL may have expired.
            return self._meter(part, part.size)
        with open_session() as session, self._deadline.running(), self._open(session, part) as response:
            self._status = response.status_code
            total: int | None
            if response.status_code == 206:
                total = _check_rest(part, response)
            elif response.status_code == 200:
                total = self._restart(part, response)
            else:
                raise _classify(part, response, self._host)
            if total is not None:
                part.require_room(total)
            meter = self._meter(part, total)
            self._receive(part, response, meter)
        if total is not None and part.size < total:
            raise TryAgain("cut_short", f"{self._host} ended the reply after {part.size:,} of {total:,} bytes.")
        return meter

    def _open(self, session: requests.Session, part: PartFile) -> requests.Response:
        url, headers = self._url, {}
        most = min(self._limits.longest_silence, self._deadline.remaining)
        answer = Deadline(most, idle=self._limits.stall_timeout)
        if part.known is not None and part.size:
            headers = {"Range": f"bytes={part.size}-", "If-Range": part.known.etag}
        for _ in range(MAX_REDIRECTS + 1):
            try:
                require_callable(url, allow_loopback=self._allow_loopback)
            except UnsafeUrlError as error:
                raise Refused("url_not_allowed", str(error)) from None
            self._host = urlsplit(url).hostname or ""
            response = self._get(session, url, headers, answer)
            target = response.headers.get("Location")
            if response.status_code not in {301, 302, 303, 307, 308} or not target:
                return response
            response.close()
            url = urljoin(url, target)
        raise Refused("too_many_redirects", f"{self._host} redirects more than {MAX_REDIRECTS} times.")

    def _get(self, session: requests.Session, url: str, headers: dict[str, str], answer: Deadline) -> requests.Response:
        timeouts = (self._limits.connect_timeout, self._limits.stall_timeout)
        try:
            with answer.running():
                return session.get(url, headers=headers, timeout=timeouts, stream=True)
        except requests.exceptions.InvalidURL:
            failure: TransferError = Refused("url_not_allowed", f"{safe_url(url)} is not a URL that can be called.")
        except WIRE_ERRORS as error:
            found = explain(error, self._host, answer)
            failure = NoAnswer(found.code, found.sentence)
        # Raised out here: the library's error holds the URL, which may be signed, and must not be chained to ours.
        raise failure

    def _restart(self, part: PartFile, response: requests.Response) -> int | None:
        """Take the whole object from its first byte."""
        _check_encoding(response)
        length = response.headers.get("Content-Length", "")
        total = int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None
        if total is not None and total > self._limits.max_bytes:
            raise self._too_large(f"{total:,}")
        if part.size:
            _log.info("download_restarted", host=self._host, dropped=part.size)
        etag = response.headers.get("ETag", "")
        strong = re.fullmatch(r'"[^"]*"', etag)
        known = Known(etag, total) if strong and total is not None else None
        part.begin(known, checksum_of(response.headers))
        return total

    def _receive(self, part: PartFile, response: requests.Response, meter: TransferMeter) -> None:
        most = self._limits.max_bytes if meter.total is None else meter.total
        while True:
            try:
                data: bytes = response.raw.read1(BLOCK, decode_content=False)
            except WIRE_ERRORS as error:
                failure = explain(error, self._host, self._deadline)
                break
            if not data:
                return
            if part.size + len(data) > most:
                part.drop()
                if meter.total is None:
                    raise self._too_large(f"more than {most:,}")
                raise StartOver("object_changed", f"{self._host} sent more bytes than it announced.")
            part.write(data)
            meter.add(len(data))
        raise TryAgain(failure.code, failure.sentence)

    def _meter(self, part: PartFile, total: int | None) -> TransferMeter:
        return TransferMeter(self._limits, done=part.size, total=total, report=self._report)

    def _too_large(self, size: str) -> Refused:
        return Refused("too_large", f"The object has {size} bytes; at most {self._limits.max_bytes:,} are accepted.")


def _check_rest(part: PartFile, response: requests.Response) -> int:
    """Return the total length if the reply goes on exactly where the part ends, of the same object."""
    _check_encoding(response)
    found = _RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    etag = response.headers.get("ETag")
    known = part.known
    if found is not None and known is not None and etag in {None, known.etag}:
        start, end, total = (int(number) for number in found.groups())
        if start == part.size and start <= end < total == known.total:
            return total
    part.drop()
    raise StartOver("object_changed", "The storage's reply does not continue the bytes that were kept.")


def _check_encoding(response: requests.Response) -> None:
    """Refuse a compressed reply: its length, ranges and checksum would be those of other bytes."""
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in {"", "identity"}:
        raise Refused("encoded_reply", f"The storage sent {encoding[:20]} though asked for unencoded bytes.")


def _classify(part: PartFile, response: requests.Response, host: str) -> TransferError:
    status = response.status_code
    said = f"{host} answered {status}"
    if status in {401, 403}:
        return NeedNewUrl("weights_url_refused", f"{said}: the link expired or the weights are private.")
    if status in {404, 410}:
        return Refused("weights_gone", f"{said}: the weights are not there.")
    if status == 416:
        part.drop()
        return StartOver("object_changed", f"{said}: the object is shorter than what was kept of it.")
    if status in {408, 425, 429} or status >= 500:
        wait = retry_after(response.headers)
        return NoAnswer("storage_busy", f"{said}: it cannot send the file now.", retry_after=wait)
    return Refused("unexpected_status", f"{said} to a plain download.")


def _finish(part: PartFile) -> Download:
    """Bring the whole file to the disk, and compare it with what the storage said of it."""
    part.settle()
    named = None if part.checksum is None else part.checksum.algorithm
    if part.damaged:
        part.drop()
        raise StartOver("damaged", f"The downloaded file does not have the storage's {named}.")
    return Download(size=part.size, sha256=part.sha256, checked=named)
