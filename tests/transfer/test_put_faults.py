"""An upload whose connection breaks, or whose file changes under it."""

import hashlib
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from finetune_worker.transfer.errors import SourceChanged, TryAgain
from finetune_worker.transfer.limits import TransferLimits
from transfer.uploads import CONTENT, QUICK, Storage, failure, put
from wire.rawserver import RawServer, Wire

# --- Faults of the connection ---


def reset_in_the_body(wire: Wire) -> None:
    wire.head()
    wire.sock.recv(1000)
    wire.reset()


def reset_after_the_body(wire: Wire) -> None:
    wire.hear()
    wire.reset()


def never_answer(wire: Wire) -> None:
    wire.hear()
    wire.wait_closed()


@pytest.mark.parametrize(
    ("talk", "limits", "code"),
    [
        (reset_in_the_body, QUICK, "connection_lost"),
        (reset_after_the_body, QUICK, "connection_lost"),
        (never_answer, TransferLimits(stall_timeout=0.3), "read_timeout"),
    ],
)
def test_a_broken_connection_may_be_tried_again(
    tmp_path: Path, talk: Callable[[Wire], None], limits: TransferLimits, code: str
) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(CONTENT * 20)
    with RawServer(talk) as server:
        error = failure(server, path, limits=limits)
    assert (type(error), error.code, error.retryable) == (TryAgain, code, True)


def test_a_storage_that_stops_reading_is_a_stall(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(CONTENT * 30)
    over = threading.Event()

    def talk(wire: Wire) -> None:
        wire.head()
        over.wait(10)

    with RawServer(talk) as server:
        error = failure(server, path, limits=TransferLimits(stall_timeout=0.3))
        over.set()
    assert (type(error), error.code) == (TryAgain, "read_timeout")


def trickle(over: threading.Event) -> Callable[[Wire], None]:
    """Read a little, again and again."""

    def talk(wire: Wire) -> None:
        wire.head()
        while not over.wait(0.02):
            wire.sock.recv(50_000)

    return talk


def test_a_storage_that_reads_too_slowly_is_a_stall(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(CONTENT * 60)
    over = threading.Event()
    with RawServer(trickle(over)) as server:
        error = failure(server, path, limits=TransferLimits(stall_timeout=0.4, min_rate=1e9))
        over.set()
    assert (type(error), error.code) == (TryAgain, "stalled")


def test_an_upload_ends_by_its_total_time(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(CONTENT * 60)
    over = threading.Event()
    with RawServer(trickle(over)) as server:
        error = failure(server, path, limits=TransferLimits(total_timeout=0.5))
        over.set()
    assert (type(error), error.code) == (TryAgain, "call_timeout")


def trickle_headers(wire: Wire) -> None:
    wire.hear()
    with suppress(OSError):
        while True:
            wire.say(b"H")
            time.sleep(0.01)


def test_a_reply_that_never_begins_ends_before_the_jobs_lease(source: Path) -> None:
    began = time.monotonic()
    with RawServer(trickle_headers) as server:
        error = failure(server, source, limits=TransferLimits(stall_timeout=0.3, total_timeout=60))
    assert time.monotonic() - began < 20
    assert (type(error), error.code) == (TryAgain, "call_timeout")


# --- The file changes under the upload ---


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def shrink(path: Path) -> None:
    os.truncate(path, 500_000)


def rewrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"other")
    os.utime(path, ns=(1, 1))


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(CONTENT)
    other.replace(path)


@pytest.mark.parametrize("change", [grow, shrink, rewrite, replace, Path.unlink])
def test_a_file_that_changes_never_arrives_whole(
    source: Path, storage: Storage, change: Callable[[Path], None]
) -> None:
    """The change is made when the upload has begun; the server must not get the last bytes."""
    changed: list[bool] = []

    def on_progress(done: int, total: int | None) -> None:
        if not changed:
            changed.append(True)
            change(source)

    with RawServer(storage.talk) as server:
        assert type(failure(server, source, on_progress=on_progress)) is SourceChanged
    assert server.connections == 1
    assert storage.heard == []


def test_another_file_than_the_one_that_was_checked_never_arrives_whole(source: Path, storage: Storage) -> None:
    """It was exchanged before the upload opened it: only its bytes tell."""
    checked = hashlib.sha256(CONTENT).hexdigest()
    with RawServer(storage.talk) as server:
        assert put(server, source, sha256=checked) == len(CONTENT)
        source.write_bytes(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
        error = failure(server, source, sha256=checked)
    assert (type(error), error.code) == (SourceChanged, "source_changed")
    assert len(storage.heard) == 1


class Stop(BaseException):
    """What a stage raises to end its work at once."""


@pytest.mark.parametrize(
    "error", [Stop(), RuntimeError("lost the job"), BrokenPipeError(), ConnectionResetError(104, "x"), TimeoutError()]
)
def test_what_the_progress_raises_reaches_the_caller_unchanged(
    tmp_path: Path, storage: Storage, error: BaseException
) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(CONTENT * 30)

    def on_progress(done: int, total: int | None) -> None:
        if done:
            raise error

    with RawServer(storage.talk) as server:
        with pytest.raises(type(error)) as caught:
            put(server, path, on_progress=on_progress)
        assert caught.value is error
        assert storage.heard == []
        assert put(server, path) == len(CONTENT) * 30
