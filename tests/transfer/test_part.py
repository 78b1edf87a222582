"""What is on the disk of a download that is not whole: the part, the note beside it, and a disk that fails."""

import errno
import json
import os
import resource
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_worker.transfer import (
    Download,
    NoRoom,
    PartBusy,
    partfile,
)
from finetune_worker.transfer.beside import Beside
from support.until import until
from transfer.bucket import CONTENT, SIGNATURE, Bucket, digest, failure, get
from wire.rawserver import Heard, RawServer, Wire


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
