"""Disks that are full, buckets that are gone, stores that refuse: one clear error each, and nothing half-written."""

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from finetune_queue.storage import (
    DiskFullError,
    DriverMissingError,
    IncompleteError,
    NoAccessError,
    ObjectMissingError,
    Place,
    PlaceMissingError,
    StorageError,
    UnavailableError,
)
from finetune_queue.storage.errors import from_os_error
from support.rights import file_modes_count

QUICK = {"config_kwargs": {"connect_timeout": 2, "read_timeout": 2, "retries": {"max_attempts": 0}}}


@pytest.fixture
def local(tmp_path: Path) -> Path:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"x" * 3_000_000)
    return path


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(f"file://{tmp_path}/store")
    place.put_bytes(b"old", "a")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match="no space left") as caught:
        place.put_file(local, "a")
    assert caught.value.retryable
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["a"]
    assert (tmp_path / "store" / "a").read_bytes() == b"old"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_is_really_full() -> None:
    with pytest.raises(OSError) as caught:
        Path("/dev/full").write_bytes(b"x")
    assert isinstance(from_os_error(caught.value, "/dev/full"), DiskFullError)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EDQUOT, DiskFullError),
        (errno.EACCES, NoAccessError),
        (errno.EROFS, NoAccessError),
        (errno.ENOENT, ObjectMissingError),
        (errno.EIO, UnavailableError),
    ],
)
def test_errors_of_the_system(number: int, kind: type[StorageError]) -> None:
    error = from_os_error(OSError(number, os.strerror(number)), "/srv/x")
    assert type(error) is kind
    assert "/srv/x" in error.sentence


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "store").write_bytes(b"")
    with pytest.raises(StorageError, match="store"):
        Place(f"file://{tmp_path}/store").check_writable()


def test_a_read_only_folder(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    folder.mkdir(mode=0o500)
    with file_modes_count(), pytest.raises(NoAccessError, match="store"):
        Place(f"file://{folder}").check_writable()


def test_an_interrupted_copy_leaves_nothing(tmp_path: Path, local: Path) -> None:
    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Place(f"file://{tmp_path}/store").put_file(local, "a", stop)
    assert list((tmp_path / "store").iterdir()) == []


def test_a_copy_is_brought_to_the_disk_as_it_goes(tmp_path: Path, local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a slow disk a large copy would else end with one call that takes longer than a worker may be silent."""
    monkeypatch.setattr("finetune_queue.storage.local._SYNC", 1 << 20)
    fsync, synced = os.fsync, []

    def counting(handle: int) -> None:
        fsync(handle)
        synced.append(os.fstat(handle).st_size)

    monkeypatch.setattr(os, "fsync", counting)
    Place(f"file://{tmp_path}/store").put_file(local, "a")
    assert synced[:3] == [1 << 20, 2 << 20, 3_000_000]


def test_a_source_that_shrinks_is_noticed(tmp_path: Path, local: Path) -> None:
    def shrink(done: int, _total: int) -> None:
        os.truncate(local, done)

    with pytest.raises(IncompleteError) as caught:
        Place(f"file://{tmp_path}/store").put_file(local, "a", shrink)
    assert caught.value.retryable
    assert list((tmp_path / "store").iterdir()) == []


def test_what_a_killed_process_left_is_cleared_after_a_day(tmp_path: Path, local: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    old, young, other = store / ".a.1.part", store / ".a.2.part", store / ".b.1.part"
    for path in (old, young, other):
        path.write_bytes(b"x")
    for path in (old, other):
        os.utime(path, (0, 0))
    Place(f"file://{store}").put_file(local, "a")
    assert sorted(path.name for path in store.iterdir()) == [".a.2.part", ".b.1.part", "a"]


def test_a_name_is_absent_until_it_is_whole(tmp_path: Path, local: Path) -> None:
    place = Place(f"file://{tmp_path}/store")
    seen: list[bool] = []
    place.put_file(local, "a", lambda _done, _total: seen.append(place.exists("a")))
    assert seen == [False] * len(seen)
    assert place.exists("a")


def test_files_have_the_mode_that_the_user_chose(tmp_path: Path, local: Path) -> None:
    before = os.umask(0o027)
    try:
        Place(f"file://{tmp_path}/store").put_file(local, "a")
    finally:
        os.umask(before)
    assert (tmp_path / "store" / "a").stat().st_mode & 0o777 == 0o640


def test_a_vanished_bucket(s3: Any, bucket: str, local: Path) -> None:
    place = Place(f"s3://{bucket}/x")
    place.put_bytes(b"x", "a")
    s3.delete_object(Bucket=bucket, Key="x/a")
    s3.delete_bucket(Bucket=bucket)
    for attempt in (place.check_writable, lambda: place.put_file(local, "a"), lambda: place.put_bytes(b"", "a")):
        with pytest.raises(PlaceMissingError, match=bucket) as caught:
            attempt()
        assert caught.value.code == "place_missing"


def test_no_credentials(s3_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(NoAccessError, match="no credentials") as caught:
        Place("s3://bucket", {"endpoint_url": s3_server, **QUICK}).check_writable()
    assert caught.value.code == "no_access"


@pytest.fixture
def refusing() -> Iterator[tuple[str, list[int]]]:
    """An S3 API that answers everything with the status in the list."""
    status = [403]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            code = {403: "AccessDenied", 503: "SlowDown"}[status[0]]
            body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
            self.send_response(status[0])
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "application/xml")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = answer  # noqa: N815  # names set by the library

        def log_message(self, *_args: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", status
    server.shutdown()
    server.server_close()
    thread.join(10)


def options(endpoint: str) -> dict[str, Any]:
    return {"endpoint_url": endpoint, "key": "k", "secret": "hush-hush", **QUICK}


def test_a_store_that_refuses(refusing: tuple[str, list[int]]) -> None:
    place = Place("s3://bucket", options(refusing[0]))
    for attempt in (place.check_writable, lambda: place.info("a"), lambda: place.exists("a")):
        with pytest.raises(NoAccessError) as caught:
            attempt()
        assert "hush" not in caught.value.sentence
        assert not caught.value.retryable


def test_a_store_that_is_busy(refusing: tuple[str, list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 1)
    refusing[1][0] = 503
    with pytest.raises(UnavailableError, match="SlowDown") as caught:
        Place("s3://bucket", options(refusing[0])).check_writable()
    assert caught.value.retryable


def test_a_store_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 1)
    with pytest.raises(UnavailableError) as caught:
        Place("s3://bucket", options("http://127.0.0.1:9")).check_writable()
    assert caught.value.code == "unavailable"


@pytest.mark.parametrize(("scheme", "package"), [("gs", "gcsfs"), ("az", "adlfs")])
def test_a_driver_that_is_not_installed(scheme: str, package: str) -> None:
    with pytest.raises(DriverMissingError, match=package):
        Place(f"{scheme}://bucket").check_writable()


def test_s3_without_its_extra() -> None:
    code = (
        "import sys; sys.modules['s3fs'] = None\n"
        "from finetune_queue.storage import Place, StorageError\n"
        "try: Place('s3://bucket').check_writable()\n"
        "except StorageError as error: print(error.code, error.sentence)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=30)
    assert done.stdout.startswith("driver_missing")
    assert "finetune-queue[s3]" in done.stdout


def test_drivers_load_only_when_a_bucket_is_used() -> None:
    code = (
        "import sys; from finetune_queue.storage import Place; Place('s3://b/x'); Place('file:///x').exists('a');"
        "print([name for name in ('fsspec', 's3fs', 'requests') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == "[]"


def test_an_object_that_changes_under_a_reader(bucket: str, tmp_path: Path) -> None:
    place = Place(f"s3://{bucket}")
    path = tmp_path / "large"
    path.write_bytes(b"1" * 12_000_000)
    place.put_file(path, "a")
    with place.open_read("a") as file:
        assert file.read(1) == b"1"
        place.put_bytes(b"2" * 12_000_000, "a")
        with pytest.raises(StorageError) as caught:
            file.read()
    assert caught.value.retryable
