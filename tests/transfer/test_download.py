"""Downloads that are cut, changed, damaged and slow: the right bytes in the end, or a clear error; never a mixture."""

import base64
import errno
import gzip
import hashlib
import json
import os
import re
import resource
import shutil
import sys
import threading
import time
import traceback
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from crc32c import CRC32CHash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from finetune_worker.transfer import (
    Download,
    Limits,
    NeedNewUrl,
    NoRoom,
    PartBusy,
    Refused,
    StartOver,
    TransferError,
    TryAgain,
    discard,
    download,
    partfile,
)
from finetune_worker.transfer.beside import Beside
from support.until import until
from wire.rawserver import Heard, RawServer, Wire

CONTENT = hashlib.shake_128(b"weights").digest(600_007)
OTHER = hashlib.shake_128(b"other").digest(600_007)
SIGNATURE = "feed-face"  # by name below: a traceback shows source lines
QUICK = Limits(connect_timeout=2, stall_timeout=5, total_timeout=20)


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


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


@pytest.fixture
def server(bucket: Bucket) -> Iterator[RawServer]:
    with RawServer(bucket.talk) as server:
        yield server


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "w.part"


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


def test_a_download(server: RawServer, part: Path, bucket: Bucket) -> None:
    seen: list[tuple[int, int | None]] = []
    done = get(server, part, on_progress=lambda done, total: seen.append((done, total)))
    assert done == Download(size=len(CONTENT), sha256=digest(CONTENT), etag='"v1"', checked=None)
    assert part.read_bytes() == CONTENT
    assert seen[0] == (0, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    (heard,) = bucket.heard
    assert (heard.method, heard.headers["accept-encoding"]) == ("GET", "identity")
    assert not {"range", "if-range", "x-api-key", "cookie", "authorization"} & heard.headers.keys()
    discard(part)
    assert list(part.parent.iterdir()) == []


def test_an_empty_object(server: RawServer, part: Path, bucket: Bucket) -> None:
    bucket.content = b""
    assert get(server, part).size == 0


# --- Resuming ---

CUTS = [0, 1, 8191, 8192, 262_143, 262_144, 262_145, 600_006]


@pytest.mark.parametrize("cut", CUTS)
def test_a_cut_download_goes_on(server: RawServer, part: Path, bucket: Bucket, cut: int) -> None:
    bucket.cuts = [cut]
    error = failure(server, part)
    assert (type(error), error.code, error.retryable) == (TryAgain, "connection_lost", True)
    done = get(server, part)
    assert (done.sha256, done.size) == (digest(CONTENT), len(CONTENT))
    assert part.read_bytes() == CONTENT
    first, second = bucket.heard
    assert "range" not in first.headers
    if cut:
        assert second.headers["range"] == f"bytes={cut}-"
        assert second.headers["if-range"] == '"v1"'


@pytest.mark.parametrize("cut", CUTS)
def test_a_reset_download_goes_on(server: RawServer, part: Path, bucket: Bucket, cut: int) -> None:
    """A reset may overtake bytes that were sent before it: some of them are kept."""
    bucket.cuts, bucket.reset = [cut], True
    error = failure(server, part)
    assert (type(error), error.code) == (TryAgain, "connection_lost")
    kept = part.stat().st_size
    assert kept <= cut
    assert get(server, part).sha256 == digest(CONTENT)
    assert bucket.heard[1].headers.get("range") == (f"bytes={kept}-" if kept else None)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 200_000), max_size=5), st.sampled_from(['"v1"', 'W/"v1"', None]), st.booleans())
def test_any_cuts_end_in_the_right_hash(
    tmp_path: Path,
    cuts: list[int],
    etag: str | None,
    ranges: bool,  # noqa: FBT001
) -> None:
    bucket, part = Bucket(), tmp_path / "any.part"
    bucket.cuts, bucket.etag, bucket.ranges = list(cuts), etag, ranges
    bucket.headers = {"x-goog-hash": google_hash(CONTENT, "crc32c", "md5")}
    with RawServer(bucket.talk) as server:
        for _ in cuts:
            assert type(failure(server, part)) is TryAgain
        done = get(server, part)
    assert done.sha256 == digest(CONTENT)
    assert done.checked == "crc32c"
    assert part.read_bytes() == CONTENT
    discard(part)


def test_an_object_that_changed_between_is_taken_whole(server: RawServer, part: Path, bucket: Bucket) -> None:
    bucket.cuts = [300_000]
    failure(server, part)
    bucket.content, bucket.etag = OTHER, '"v2"'
    done = get(server, part)
    assert (done.sha256, done.etag) == (digest(OTHER), '"v2"')
    assert bucket.heard[1].headers["if-range"] == '"v1"'
    assert part.read_bytes() == OTHER


def test_a_server_that_ignores_ranges_sends_it_all_again(server: RawServer, part: Path, bucket: Bucket) -> None:
    bucket.cuts, bucket.ranges = [300_000], False
    failure(server, part)
    assert get(server, part).sha256 == digest(CONTENT)


@pytest.mark.parametrize("etag", ['W/"v1"', None, "", "v1", '"a"b"'])
def test_without_a_strong_etag_nothing_is_resumed(
    server: RawServer, part: Path, bucket: Bucket, etag: str | None
) -> None:
    bucket.cuts, bucket.etag = [300_000], etag
    failure(server, part)
    assert get(server, part).sha256 == digest(CONTENT)
    assert "range" not in bucket.heard[1].headers


def test_without_a_length_nothing_is_resumed(server: RawServer, part: Path, bucket: Bucket) -> None:
    bucket.headers = {"Content-Length": ""}
    seen: list[tuple[int, int | None]] = []
    done = get(server, part, on_progress=lambda done, total: seen.append((done, total)))
    assert done.sha256 == digest(CONTENT)
    assert seen[0] == (0, None)
    assert not part.with_name("w.part.json").exists()


def test_a_chunked_reply_that_breaks_off_is_seen(server: RawServer, part: Path, bucket: Bucket) -> None:
    def chunks(wire: Wire, heard: Heard) -> bool:
        wire.say(b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n5\r\nab")
        return True

    bucket.answer = chunks
    assert failure(server, part).code == "connection_lost"


BAD_RESTS: dict[str, tuple[str, str | None, int]] = {
    "another start": ("bytes 299999-600006/600007", '"v1"', 300_008),
    "a later start": ("bytes 300001-600006/600007", '"v1"', 300_006),
    "another total": ("bytes 300000-600007/600008", '"v1"', 300_008),
    "another etag": ("bytes 300000-600006/600007", '"v2"', 300_007),
    "a weak etag": ("bytes 300000-600006/600007", 'W/"v1"', 300_007),
    "unknown total": ("bytes 300000-600006/*", '"v1"', 300_007),
    "no range": ("", '"v1"', 300_007),
    "nonsense": ("pages 1-2/3", '"v1"', 300_007),
    "an end past the total": ("bytes 300000-600007/600007", '"v1"', 300_008),
    "more bytes than announced": ("bytes 300000-600006/600007", '"v1"', 300_008),
}


@pytest.mark.parametrize("name", BAD_RESTS)
def test_a_rest_that_does_not_fit_is_never_joined(server: RawServer, part: Path, bucket: Bucket, name: str) -> None:
    content_range, etag, length = BAD_RESTS[name]
    bucket.cuts = [300_000]
    failure(server, part)

    def rest(wire: Wire, heard: Heard) -> bool:
        wire.reply(206, b"x" * length, Content_Range=content_range, ETag=etag or "")
        return True

    bucket.answer = rest
    error = failure(server, part)
    assert (type(error), error.code) == (StartOver, "object_changed")
    assert part.read_bytes() == b""
    bucket.answer = None
    assert get(server, part).sha256 == digest(CONTENT)
    assert "range" not in bucket.heard[2].headers


def test_a_rest_in_pieces_is_joined(server: RawServer, part: Path, bucket: Bucket) -> None:
    """A server may send less than was asked for, as long as it says so."""
    bucket.cuts = [300_000]
    failure(server, part)

    def rest(wire: Wire, heard: Heard) -> bool:
        wire.reply(206, CONTENT[300_000:400_000], Content_Range="bytes 300000-399999/600007", ETag='"v1"')
        return True

    bucket.answer = rest
    assert failure(server, part).code == "cut_short"
    bucket.answer = None
    assert get(server, part).sha256 == digest(CONTENT)
    assert bucket.heard[2].headers["range"] == "bytes=400000-"


def test_416_starts_over(server: RawServer, part: Path, bucket: Bucket) -> None:
    bucket.cuts = [300_000]
    failure(server, part)

    def short(wire: Wire, heard: Heard) -> bool:
        wire.reply(416, Content_Range="bytes */300000")
        return True

    bucket.answer = short
    error = failure(server, part)
    assert (type(error), error.code, error.status) == (StartOver, "object_changed", 416)
    assert part.read_bytes() == b""
    bucket.answer = None
    assert get(server, part).sha256 == digest(CONTENT)


def test_a_whole_part_is_not_asked_for_again(server: RawServer, part: Path, bucket: Bucket) -> None:
    """A worker died between the last byte and the use of the file; the link has ended since."""
    first = get(server, part)
    seen: list[tuple[int, int | None]] = []
    assert get(server, part, on_progress=lambda done, total: seen.append((done, total))) == first
    assert len(bucket.heard) == 1
    assert seen[-1] == (len(CONTENT), len(CONTENT))


def test_the_bytes_kept_are_counted_while_they_are_read_again(
    server: RawServer, part: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of some GB that takes as long as a lease: the stage must show signs of life."""
    monkeypatch.setattr(partfile, "_READ", 100_000)
    bucket.cuts = [300_000]
    failure(server, part)
    seen: list[tuple[int, int | None]] = []
    get(server, part, on_progress=lambda done, total: seen.append((done, total)))
    assert seen[:4] == [(done, len(CONTENT)) for done in (100_000, 200_000, 300_000, 300_000)]


# --- What is on the disk ---


@pytest.mark.parametrize("spoil", ["cut short", "emptied", "nonsense", "another version", "of another URL", "missing"])
def test_a_note_that_cannot_be_trusted_means_starting_again(
    server: RawServer, part: Path, bucket: Bucket, spoil: str
) -> None:
    bucket.cuts = [300_000]
    failure(server, part)
    note = part.with_name("w.part.json")
    kept = json.loads(note.read_text())
    match spoil:
        case "cut short":
            note.write_text(note.read_text()[:20])
        case "emptied":
            note.write_text("")
        case "nonsense":
            note.write_text(json.dumps(kept | {"synced": "many"}))
        case "another version":
            note.write_text(json.dumps(kept | {"new": 1}))
        case "of another URL":
            note.write_text(json.dumps(kept | {"source": "https://x.example/"}))
        case "missing":
            note.unlink()
    assert get(server, part).sha256 == digest(CONTENT)
    assert "range" not in bucket.heard[1].headers


def test_bytes_after_the_last_checkpoint_do_not_count(server: RawServer, part: Path, bucket: Bucket) -> None:
    """After a power cut the file may be long and full of zeros: only what was synced is kept."""
    bucket.cuts = [300_000]
    failure(server, part)
    with part.open("ab") as file:
        file.write(bytes(200_000))
    assert get(server, part).sha256 == digest(CONTENT)
    assert bucket.heard[1].headers["range"] == "bytes=300000-"


def test_a_part_shorter_than_its_note_is_not_trusted(server: RawServer, part: Path, bucket: Bucket) -> None:
    bucket.cuts = [300_000]
    failure(server, part)
    os.truncate(part, 100)
    assert get(server, part).sha256 == digest(CONTENT)
    assert "range" not in bucket.heard[1].headers


def test_checkpoints_are_written_on_the_way(
    server: RawServer, part: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill at any time costs little: the note grows while the transfer goes on, and does not hold it up."""
    monkeypatch.setattr(partfile, "CHECKPOINT_BYTES", 100_000)
    monkeypatch.setattr("finetune_worker.transfer.limits.STEP_BYTES", 1)
    half, seen = 300_000, threading.Event()

    def in_halves(wire: Wire, heard: Heard) -> bool:
        wire.say(f'HTTP/1.1 200 X\r\nContent-Length: {len(CONTENT)}\r\nETag: "v1"\r\n\r\n'.encode())
        wire.say(CONTENT[:half])
        assert seen.wait(10)
        wire.say(CONTENT[half:])
        return True

    def synced() -> int:
        return int(json.loads(part.with_name("w.part.json").read_text())["synced"])

    def on_progress(done: int, total: int | None) -> None:
        if done == half:
            until(lambda: 100_000 <= synced() <= half, seconds=10)
            seen.set()

    bucket.answer = in_halves
    get(server, part, on_progress=on_progress)
    assert synced() == len(CONTENT)


def test_a_disk_that_is_slower_than_the_network_is_waited_for(
    server: RawServer, part: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first checkpoint ends only when the download has come to wait for it, or never within ten seconds."""
    monkeypatch.setattr(partfile, "CHECKPOINT_BYTES", 1)
    monkeypatch.setattr(partfile, "MAX_UNSYNCED", 100_000)
    monkeypatch.setattr("finetune_worker.transfer.limits.STEP_BYTES", 1)
    monkeypatch.setattr(sys.modules["finetune_worker.transfer.download"], "BLOCK", 50_000)
    fsync, start, waited, seen = os.fsync, Beside.start, threading.Event(), [0]

    def slow(handle: int) -> None:
        if threading.current_thread().name.startswith("checkpoint"):
            assert waited.wait(10)
        fsync(handle)

    def watched(beside: Beside, call: Callable[..., None], *given: object) -> None:
        if beside.busy and call.__name__ == "_sync":
            waited.set()
        start(beside, call, *given)

    monkeypatch.setattr(os, "fsync", slow)
    monkeypatch.setattr(Beside, "start", watched)

    def on_progress(done: int, total: int | None) -> None:
        if not waited.is_set():
            seen[0] = done

    assert get(server, part, on_progress=on_progress).sha256 == digest(CONTENT)
    assert seen[0] <= 150_000


def test_a_disk_that_fails_at_a_checkpoint_ends_the_download(
    server: RawServer, part: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint runs in a thread of its own; its failure must not stay there."""
    monkeypatch.setattr(partfile, "CHECKPOINT_BYTES", 100_000)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "x")

    def on_progress(done: int, total: int | None) -> None:
        monkeypatch.setattr(os, "fsync", full)

    error = failure(server, part, on_progress=on_progress)
    assert (type(error), error.code) == (NoRoom, "disk_full")
    monkeypatch.undo()
    assert get(server, part).sha256 == digest(CONTENT)


def test_the_signature_is_not_kept_on_the_disk(server: RawServer, part: Path, bucket: Bucket) -> None:
    bucket.cuts = [300_000]
    failure(server, part)
    assert SIGNATURE not in part.with_name("w.part.json").read_text()


def test_two_workers_never_write_into_one_part(server: RawServer, part: Path, bucket: Bucket) -> None:
    entered, leave = threading.Event(), threading.Event()

    def on_progress(done: int, total: int | None) -> None:
        entered.set()
        assert leave.wait(10)

    first: list[Download] = []
    worker = threading.Thread(target=lambda: first.append(get(server, part, on_progress=on_progress)))
    worker.start()
    assert entered.wait(10)
    error = failure(server, part)
    leave.set()
    worker.join(10)
    assert (type(error), error.code) == (PartBusy, "part_busy")
    assert first[0].sha256 == digest(CONTENT)


def test_a_disk_without_room_is_seen_before(
    server: RawServer, part: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    little = shutil.disk_usage(part.parent)._replace(free=500_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: little)
    error = failure(server, part)
    assert (type(error), error.code, error.retryable) == (NoRoom, "disk_full", True)
    monkeypatch.undo()
    assert get(server, part).sha256 == digest(CONTENT)


def test_a_disk_that_fills_up_keeps_what_came(server: RawServer, part: Path, bucket: Bucket) -> None:
    """A real refusal by the system: this process may write no file over 400,000 bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))
    try:
        error = failure(server, part)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (type(error), error.code) == (NoRoom, "disk_full")
    assert get(server, part).sha256 == digest(CONTENT)
    assert bucket.heard[1].headers["range"] == "bytes=400000-"


def test_a_folder_that_is_not_there_is_named(server: RawServer, tmp_path: Path) -> None:
    error = failure(server, tmp_path / "none" / "w.part")
    assert (type(error), error.code) == (NoRoom, "disk_failed")
    assert "No such file" in error.detail


# --- What the storage says ---


@pytest.mark.parametrize(
    ("status", "expect"),
    [
        (400, (Refused, "unexpected_status")),
        (401, (NeedNewUrl, "weights_url_refused")),
        (403, (NeedNewUrl, "weights_url_refused")),
        (404, (Refused, "weights_gone")),
        (410, (Refused, "weights_gone")),
        (408, (TryAgain, "storage_busy")),
        (429, (TryAgain, "storage_busy")),
        (500, (TryAgain, "storage_busy")),
        (503, (TryAgain, "storage_busy")),
        (204, (Refused, "unexpected_status")),
        (304, (Refused, "unexpected_status")),
        (302, (Refused, "unexpected_status")),
    ],
)
def test_a_status_is_classified_and_keeps_what_came(
    server: RawServer, part: Path, bucket: Bucket, status: int, expect: tuple[type[TransferError], str]
) -> None:
    bucket.cuts = [300_000]
    failure(server, part)

    def no(wire: Wire, heard: Heard) -> bool:
        wire.reply(status, b"<Error/>" if status not in {204, 304} else b"", Retry_After="9")
        return True

    bucket.answer = no
    error = failure(server, part)
    assert (type(error), error.code) == expect
    assert error.status == status
    assert error.retry_after == (9.0 if error.code == "storage_busy" else None)
    bucket.answer = None
    assert get(server, part).sha256 == digest(CONTENT)
    assert bucket.heard[2].headers["range"] == "bytes=300000-"


@pytest.mark.parametrize("encoding", ["gzip", "br", "GZIP"])
def test_a_compressed_reply_is_never_taken_for_the_file(
    server: RawServer, part: Path, bucket: Bucket, encoding: str
) -> None:
    bucket.content = gzip.compress(CONTENT)
    bucket.headers = {"Content-Encoding": encoding}
    error = failure(server, part)
    assert (type(error), error.code) == (Refused, "encoded_reply")
    assert part.read_bytes() == b""


@pytest.mark.parametrize(
    ("headers", "checked"),
    [
        ({"x-goog-hash": google_hash(CONTENT, "md5", "crc32c")}, "crc32c"),
        ({"x-goog-hash": google_hash(CONTENT, "crc32c")}, "crc32c"),
        ({"x-goog-hash": google_hash(CONTENT, "md5")}, "md5"),
        ({"ETag": f'"{hashlib.md5(CONTENT).hexdigest()}"', "x-amz-request-id": "1"}, "md5"),
    ],
)
def test_the_storages_checksum_is_compared(
    server: RawServer, part: Path, bucket: Bucket, headers: dict[str, str], checked: str
) -> None:
    bucket.etag = None
    bucket.headers = {"ETag": '"v1"'} | headers
    bucket.content = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    error = failure(server, part)
    assert (type(error), error.code, error.retryable) == (StartOver, "damaged", True)
    assert checked in error.detail
    assert part.read_bytes() == b""
    bucket.content = CONTENT
    assert get(server, part).checked == checked


def test_damage_in_the_kept_bytes_is_found_in_the_end(server: RawServer, part: Path, bucket: Bucket) -> None:
    bucket.headers = {"x-goog-hash": google_hash(CONTENT, "crc32c")}
    bucket.cuts = [300_000]
    failure(server, part)
    with part.open("r+b") as file:
        file.write(b"\x00" if CONTENT[0] else b"\x01")
    assert failure(server, part).code == "damaged"
    assert get(server, part).sha256 == digest(CONTENT)


def test_too_large_is_refused_before_and_on_the_way(server: RawServer, part: Path, bucket: Bucket) -> None:
    small = Limits(max_bytes=600_006)
    error = failure(server, part, limits=small)
    assert (type(error), error.code) == (Refused, "too_large")
    assert "600,007" in error.detail
    bucket.headers = {"Content-Length": ""}
    error = failure(server, part, limits=small)
    assert (type(error), error.code) == (Refused, "too_large")
    assert part.read_bytes() == b""
    assert get(server, part, limits=Limits(max_bytes=600_007)).size == 600_007


# --- Redirects ---


def redirecting(bucket: Bucket, hops: int) -> None:
    def answer(wire: Wire, heard: Heard) -> bool:
        number = int(heard.path.removeprefix("/hop") or 0) if heard.path.startswith("/hop") else 0
        if number == hops:
            return False
        wire.reply(302, b"x" * 100, Location=f"/hop{number + 1}?sig={SIGNATURE}")
        return True

    bucket.answer = answer


def test_three_redirects_are_followed_and_resume_too(server: RawServer, part: Path, bucket: Bucket) -> None:
    redirecting(bucket, 3)
    bucket.cuts = [300_000]
    failure(server, part)
    assert get(server, part).sha256 == digest(CONTENT)
    assert [heard.headers.get("range") for heard in bucket.heard[4:]] == ["bytes=300000-"] * 4


def test_a_fourth_redirect_is_not_followed(server: RawServer, part: Path, bucket: Bucket) -> None:
    redirecting(bucket, 9)
    error = failure(server, part)
    assert (type(error), error.code) == (Refused, "too_many_redirects")
    assert len(bucket.heard) == 4


@pytest.mark.parametrize(
    "target", ["http://storage.example/x", "ftp://127.0.0.1/x", "file:///etc/passwd", "//a:b@c.example/"]
)
def test_a_redirect_to_where_nothing_may_go_is_refused(
    server: RawServer, part: Path, bucket: Bucket, target: str
) -> None:
    def answer(wire: Wire, heard: Heard) -> bool:
        wire.reply(302, Location=target)
        return True

    bucket.answer = answer
    error = failure(server, part)
    assert (type(error), error.code) == (Refused, "url_not_allowed")


def test_loopback_is_only_for_the_sandbox(part: Path, bucket: Bucket) -> None:
    with RawServer(bucket.talk) as server:
        error = failure(server, part, allow_loopback=False)
    assert (type(error), error.code) == (Refused, "url_not_allowed")
    assert server.connections == 0


# --- Time and memory ---


def test_a_refused_connection_may_be_tried_again(part: Path) -> None:
    with RawServer(lambda wire: None) as server:
        pass
    error = failure(server, part)
    assert (type(error), error.code) == (TryAgain, "connect_failed")


def test_silence_is_a_stall_and_keeps_what_came(server: RawServer, part: Path, bucket: Bucket) -> None:
    def silent(wire: Wire, heard: Heard) -> bool:
        wire.say(b'HTTP/1.1 200 X\r\nContent-Length: 600007\r\nETag: "v1"\r\n\r\n' + CONTENT[:1000])
        wire.wait_closed()
        return True

    bucket.answer = silent
    error = failure(server, part, limits=Limits(stall_timeout=0.3))
    assert (type(error), error.code) == (TryAgain, "read_timeout")
    bucket.answer = None
    assert get(server, part).sha256 == digest(CONTENT)
    assert bucket.heard[1].headers["range"] == "bytes=1000-"


def trickle(wire: Wire, heard: Heard) -> bool:
    wire.say(b'HTTP/1.1 200 X\r\nContent-Length: 600007\r\nETag: "v1"\r\n\r\n')
    for byte in CONTENT:
        wire.say(bytes([byte]))
        time.sleep(0.01)
    return True


def trickle_headers(wire: Wire, heard: Heard) -> bool:
    while True:
        wire.say(b"H")
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("answer", "limits"),
    [
        (trickle, Limits(stall_timeout=0.3, min_rate=10_000)),
        (trickle, Limits(total_timeout=0.4)),
        (trickle_headers, Limits(total_timeout=0.4)),
    ],
)
def test_a_trickle_ends(
    server: RawServer, part: Path, bucket: Bucket, answer: Callable[[Wire, Heard], bool], limits: Limits
) -> None:
    bucket.answer = answer
    began = time.monotonic()
    error = failure(server, part, limits=limits)
    assert time.monotonic() - began < 5
    assert (type(error), error.code) == (TryAgain, "stalled" if limits.stall_timeout < 1 else "call_timeout")
    bucket.answer = None
    assert get(server, part).sha256 == digest(CONTENT)


class Stop(BaseException):
    """What a stage raises to end its work at once."""


@pytest.mark.parametrize("error", [Stop(), RuntimeError("lost the job"), ConnectionResetError(104, "x")], ids=repr)
def test_what_the_progress_raises_is_passed_on_and_the_rest_can_follow(
    server: RawServer, part: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    monkeypatch.setattr("finetune_worker.transfer.limits.STEP_BYTES", 1)

    def on_progress(done: int, total: int | None) -> None:
        if done:
            raise error

    with pytest.raises(type(error)) as caught:
        get(server, part, on_progress=on_progress)
    assert caught.value is error
    kept = part.stat().st_size
    assert 0 < kept < len(CONTENT)
    assert get(server, part).sha256 == digest(CONTENT)
    assert bucket.heard[1].headers["range"] == f"bytes={kept}-"


def test_memory_is_flat(part: Path) -> None:
    size = 200 * 1024 * 1024
    block = bytes(1 << 20)

    def talk(wire: Wire) -> None:
        wire.hear()
        wire.say(f'HTTP/1.1 200 X\r\nContent-Length: {size}\r\nETag: "v1"\r\n\r\n'.encode())
        for _ in range(200):
            wire.say(block)

    calls: list[int] = []
    with RawServer(talk) as server:
        tracemalloc.start()
        try:
            done = get(server, part, on_progress=lambda done, total: calls.append(done))
            assert tracemalloc.get_traced_memory()[1] < 8 * 1024 * 1024
        finally:
            tracemalloc.stop()
    assert done.size == size
    assert 200 // 9 <= len(calls) < 200
    assert calls == sorted(calls)


def test_one_log_line_without_the_signature(
    server: RawServer, part: Path, bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    bucket.cuts = [300_000]
    with capture_logs() as logs, caplog.at_level("DEBUG"):
        failure(server, part)
        get(server, part)
    assert [(line["event"], line["status"], line["kept"], line["size"]) for line in logs] == [
        ("transfer_get", 200, 0, 300_000),
        ("transfer_get", 206, 300_000, len(CONTENT)),
    ]
    assert "urllib3" in caplog.text
    assert SIGNATURE not in str(logs) + caplog.text
