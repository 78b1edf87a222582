"""What is done with a public URL: ask whether the provider can use it, or download it."""

import re
import time
from pathlib import Path

import requests
import urllib3

from finetune_queue.progress import OnProgress
from finetune_queue.public_fetch.addresses import AddressPolicy, shown_url
from finetune_queue.public_fetch.errors import FetchError
from finetune_queue.public_fetch.guard import opened, too_slow
from finetune_queue.timed_sockets import Deadline

PROBE_SECONDS = 30.0
GET_SECONDS = 900.0
_CHUNK = 1 << 16
_ZIP = b"PK"
_PUBLIC = "Make the link public, or have the file fetched and uploaded by us."


def probe(url: str, *, max_bytes: int, policy: AddressPolicy, seconds: float = PROBE_SECONDS) -> int:
    """Asks whether the provider can take this file by its URL ("must support GET & HEAD requests", with Content-Length,
    and under its limit: Fast Flux API, section 1), and returns its size in bytes, as its server says. Of the file only
    the first bytes are read, by one GET; both requests together may take ``seconds``.

    Raises:
        FetchError: it cannot, for the reason in its code.
    """
    began = time.monotonic()
    size = _head(url, max_bytes, policy, seconds)
    left = max(1.0, seconds - (time.monotonic() - began))
    with opened("GET", url, policy, seconds=left) as (response, deadline):
        where = shown_url(url)
        _raise_for_status(response, where)
        got = _length(response)
        _check_is_a_file(response, where, got)
        if got != size:
            said = "no length" if got is None else f"{got} bytes"
            raise FetchError("get_differs", f"{where} has {size} bytes by HEAD and {said} by GET.", _PUBLIC)
        begins = b""
        while len(begins) < len(_ZIP) and (chunk := _read(response, where, deadline)):
            begins += chunk
        if not begins.startswith(_ZIP):
            fix = "Give the address of the ZIP itself: a direct link."
            raise FetchError("not_a_file", f"{where} is not a ZIP file.", fix)
    return size


def _head(url: str, max_bytes: int, policy: AddressPolicy, seconds: float) -> int:
    with opened("HEAD", url, policy, seconds=seconds) as (response, _):
        where = shown_url(url)
        if response.status_code in (405, 501):
            raise FetchError("no_head", f"{where} does not answer HEAD requests, which the API needs.", _PUBLIC)
        _raise_for_status(response, where)
        size = _length(response)
        if size is None:
            raise FetchError("no_length", f"{where} does not say how long it is (Content-Length).", _PUBLIC)
        _check_is_a_file(response, where, size)
        if size >= max_bytes:
            raise _too_large(where, max_bytes)
        return size


def fetch_to_file(
    url: str,
    path: Path,
    *,
    max_bytes: int,
    policy: AddressPolicy,
    on_progress: OnProgress | None = None,
    seconds: float = GET_SECONDS,
) -> int:
    """Downloads to `path`, which is removed again when anything fails; `max_bytes` or more are refused. Returns the
    file's size in bytes.

    Raises:
        FetchError: not reached, not whole, or too large.
        OSError: `path` cannot be written.
    """
    with opened("GET", url, policy, seconds=seconds) as (response, deadline):
        where = shown_url(url)
        _raise_for_status(response, where)
        total = _length(response)
        _check_is_a_file(response, where, total)
        if total is not None and total >= max_bytes:
            raise _too_large(where, max_bytes)
        try:
            return _save(response, path, deadline, total=total, max_bytes=max_bytes, on_progress=on_progress)
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def _save(
    response: requests.Response,
    path: Path,
    deadline: Deadline,
    *,
    total: int | None,
    max_bytes: int,
    on_progress: OnProgress | None,
) -> int:
    where = shown_url(response.url)
    done = 0
    with path.open("wb") as target:
        while chunk := _read(response, where, deadline):
            done += len(chunk)
            if done >= max_bytes:
                raise _too_large(where, max_bytes)
            target.write(chunk)
            if on_progress is not None:
                on_progress(done, total)
    if total is not None and done != total:
        raise _incomplete(where)
    return done


def _read(response: requests.Response, where: str, deadline: Deadline) -> bytes:
    try:
        # One read of the connection: a slow server cannot hold us for longer than its time.
        chunk: bytes = response.raw.read1(_CHUNK, decode_content=False)
    except (urllib3.exceptions.HTTPError, OSError) as error:
        if deadline.passed:
            raise too_slow(deadline) from error
        if isinstance(error, urllib3.exceptions.ReadTimeoutError):
            raise FetchError("timed_out", f"{where} stopped sending.", "Try again later.", retryable=True) from error
        raise _incomplete(where) from error
    return chunk


def _raise_for_status(response: requests.Response, where: str) -> None:
    status = response.status_code
    if status == 200:
        return
    if status in (404, 410):
        raise FetchError("not_found", f"There is nothing at {where} (status {status}).", "Check the URL.")
    if status in (401, 403):
        raise FetchError("forbidden", f"{where} is not public (status {status}).", _PUBLIC)
    if status in (408, 429) or status >= 500:
        raise FetchError(
            "unavailable", f"{where} cannot answer now (status {status}).", "Try again later.", retryable=True
        )
    raise FetchError("refused", f"{where} answers with status {status}.", "Give the direct address of the file.")


def _length(response: requests.Response) -> int | None:
    """Return the file's length in bytes by Content-Length; None if there is none that counts the file's own bytes, as
    when the server compresses them (Content-Encoding)."""
    text = response.headers.get("Content-Length", "")
    encoded = response.headers.get("Content-Encoding", "identity").lower() != "identity"
    # int() raises ValueError for a text of more than 4,300 digits.
    return int(text) if re.fullmatch(r"[0-9]{1,20}", text) and not encoded else None


def _check_is_a_file(response: requests.Response, where: str, size: int | None) -> None:
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind in ("text/html", "application/xhtml+xml"):
        raise FetchError(
            "not_a_file",
            f"{where} is a web page, not a ZIP file.",
            "Give the address of the file itself: a direct link.",
        )
    if size == 0:
        raise FetchError("not_a_file", f"{where} is empty.", "Upload the file again.")


def _too_large(where: str, max_bytes: int) -> FetchError:
    return FetchError(
        "too_large",
        f"{where} has {max_bytes / 1_000_000:g} MB or more, which the API does not accept.",
        "Scale the images down to at most 2048 pixels on the long side, or use fewer.",
    )


def _incomplete(where: str) -> FetchError:
    return FetchError("incomplete", f"{where} broke off before its end.", "Try again.", retryable=True)
