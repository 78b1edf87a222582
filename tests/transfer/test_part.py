"""What is on the disk of a download that is not whole: the part, the note beside it, and a disk that fails."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.contextvars import bound_contextvars, merge_contextvars
from structlog.testing import capture_logs

from finetune_worker.transfer import partfile
from finetune_worker.transfer.beside import Beside
from finetune_worker.transfer.download import Download
from finetune_worker.transfer.errors import NoRoom, PartBusy
from support.until import until
from transfer.bucket import CONTENT, SIGNATURE, Bucket, digest, failure, get
from wire.rawserver import Heard, RawServer, Wire


@pytest.mark.parametrize(
    "spoil", ["cut short", "emptied", "nonsense", "another version", "of another URL", "of another object", "missing"]
)
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
            note.write_text(json.dumps(kept | {"total": "many"}))
        case "another version":
            note.write_text(json.dumps(kept | {"new": 1}))
        case "of another URL":
            note.write_text(json.dumps(kept | {"source": "https://x.example/"}))
        case "of another object":
            note.write_text(json.dumps(kept | {"total": 299_999}))
        case "missing":
            note.unlink()
    assert get(server, part).sha256 == digest(CONTENT)
    assert "range" not in bucket.heard[1].headers


def test_after_a_power_cut_nothing_counts(server: RawServer, part: Path, bucket: Bucket) -> None:
    """The file may be of any length and full of zeros: a part is of use only as long as the system runs."""
    bucket.cuts = [300_000]
    failure(server, part)
    note = part.with_name("w.part.json")
    note.write_text(json.dumps(json.loads(note.read_text()) | {"boot": "an earlier one"}))
    os.truncate(part, 100_000)
    os.truncate(part, 300_000)
    assert get(server, part).sha256 == digest(CONTENT)
    assert "range" not in bucket.heard[1].headers


_WORKER = """
import sys
from pathlib import Path
from finetune_worker.transfer.download import download
download(sys.argv[1], Path(sys.argv[2]), allow_loopback=True)
"""


def test_a_killed_worker_s_bytes_are_all_taken_up(server: RawServer, part: Path, bucket: Bucket) -> None:
    """Also a small download's, and without a word to the disk: the system has them."""
    done, killed = 300_000, threading.Event()

    def in_halves(wire: Wire, heard: Heard) -> bool:
        if len(bucket.heard) > 1:
            return False
        wire.say(f'HTTP/1.1 200 X\r\nContent-Length: {len(CONTENT)}\r\nETag: "v1"\r\n\r\n'.encode())
        wire.say(CONTENT[:done])
        assert killed.wait(30)
        return True

    bucket.answer = in_halves
    with subprocess.Popen([sys.executable, "-c", _WORKER, f"{server.url}/m.safetensors", str(part)]) as worker:
        until(lambda: part.exists() and part.stat().st_size == done, seconds=30)
        worker.kill()
        assert worker.wait(10) == -signal.SIGKILL
    killed.set()
    assert get(server, part).sha256 == digest(CONTENT)
    assert bucket.heard[1].headers["range"] == f"bytes={done}-"


@pytest.mark.parametrize("often", [partfile.SYNC_BYTES, 400_000])
def test_all_bytes_are_on_the_disk_before_anybody_reads_them(
    server: RawServer, part: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, often: int
) -> None:
    """Those of a small download, and those after the last sync beside a large one."""
    monkeypatch.setattr(partfile, "SYNC_BYTES", often)
    monkeypatch.setattr(sys.modules["finetune_worker.transfer.download"], "BLOCK", 100_000)
    fsync, synced = os.fsync, [0]

    def watched(handle: int) -> None:
        length = os.fstat(handle).st_size
        fsync(handle)
        assert Path(f"/proc/self/fd/{handle}").readlink() == part
        synced.append(length)

    monkeypatch.setattr(os, "fsync", watched)
    get(server, part)
    assert synced[-1] == len(CONTENT)


def test_a_disk_that_is_slower_than_the_network_is_waited_for(
    server: RawServer, part: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first sync ends only when the download has come to wait for it, or never within ten seconds."""
    monkeypatch.setattr(partfile, "SYNC_BYTES", 1)
    monkeypatch.setattr(partfile, "MAX_UNSYNCED", 100_000)
    monkeypatch.setattr("finetune_worker.transfer.limits.STEP_BYTES", 1)
    monkeypatch.setattr("finetune_worker.transfer.download.BLOCK", 50_000)
    fsync, start, waited, seen = os.fsync, Beside.start, threading.Event(), [0]

    def slow(handle: int) -> None:
        if threading.current_thread().name.startswith("sync"):
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


def test_a_disk_that_loses_bytes_ends_the_download_and_none_is_taken_up(
    server: RawServer, part: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is heard of in a thread of its own, and must not stay there: the sync at the end does not fail again."""
    monkeypatch.setattr(partfile, "SYNC_BYTES", 100_000)
    fsync = os.fsync

    def full_once(handle: int) -> None:
        if threading.current_thread().name.startswith("sync"):
            _full(handle)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full_once)
    with bound_contextvars(job_id="j1"), capture_logs([merge_contextvars]) as logs:
        error = failure(server, part)
    assert (type(error), error.code) == (NoRoom, "disk_full")
    assert [line["job_id"] for line in logs if line["event"] == "part_lost"] == ["j1"]
    assert f"The disk of {part.parent} is full." in str(error)
    assert "set TMPDIR to a larger disk" in str(error)
    monkeypatch.undo()
    assert get(server, part).sha256 == digest(CONTENT)
    assert "range" not in bucket.heard[1].headers


def test_a_disk_that_loses_the_last_bytes_ends_the_download_and_none_is_taken_up(
    server: RawServer, part: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", broken)
    error = failure(server, part)
    assert (type(error), error.code, error.retryable) == (NoRoom, "disk_failed", True)
    assert "Input/output error. Fix the disk, or set TMPDIR to another one." in error.detail
    monkeypatch.undo()
    assert get(server, part).sha256 == digest(CONTENT)
    assert "range" not in bucket.heard[1].headers


def test_a_disk_that_has_lost_what_was_kept_is_heard_of_before_it_is_taken_up(
    server: RawServer, part: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.cuts = [300_000]
    failure(server, part)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _full)
        assert failure(server, part).code == "disk_full"
    assert get(server, part).sha256 == digest(CONTENT)
    assert "range" not in bucket.heard[1].headers


def test_a_quota_that_is_used_up_is_no_full_disk(
    server: RawServer, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def over_quota(handle: int) -> None:
        raise OSError(errno.EDQUOT, "x")

    monkeypatch.setattr(os, "fsync", over_quota)
    error = failure(server, part)
    assert error.code == "disk_full"
    assert f"quota on the disk of {part.parent} is used up" in error.detail


def _full(handle: int) -> None:
    raise OSError(errno.ENOSPC, "x")


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
    assert f"may write no file of this size in {part.parent}. Raise `ulimit -f`" in error.detail
    assert get(server, part).sha256 == digest(CONTENT)
    assert bucket.heard[1].headers["range"] == "bytes=400000-"


def test_a_folder_that_is_not_there_is_named(server: RawServer, tmp_path: Path) -> None:
    error = failure(server, tmp_path / "none" / "w.part")
    assert (type(error), error.code) == (NoRoom, "disk_failed")
    assert "No such file" in error.detail
