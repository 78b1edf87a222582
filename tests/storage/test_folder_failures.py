"""A folder as a store, when its disk is full or its writer is killed: the old file stays, and nothing half is seen."""

import errno
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from finetune_queue.storage import (
    DiskFullError,
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


def test_a_read_only_folder(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    folder.mkdir(mode=0o500)
    with file_modes_count(), pytest.raises(NoAccessError, match="store"):
        Place(f"file://{folder}").check_writable()


def test_an_interrupted_copy_leaves_nothing(tmp_path: Path, local: Path) -> None:
    def stop(_done: int, _total: int | None) -> None:
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


@pytest.mark.skipif(sys.platform != "linux", reason="needs posix_fadvise(2)")
def test_a_large_copy_does_not_fill_the_memory(tmp_path: Path, local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system is told to forget what is on the disk; what is not, it cannot forget."""
    monkeypatch.setattr("finetune_queue.storage.local._SYNC", 1 << 20)
    fsync, advise, done = os.fsync, os.posix_fadvise, []

    def synced(handle: int) -> None:
        fsync(handle)
        done.append(("synced", os.fstat(handle).st_size))

    def advised(handle: int, offset: int, length: int, advice: int) -> None:
        advise(handle, offset, length, advice)
        assert (offset, length, advice) == (0, 0, os.POSIX_FADV_DONTNEED)
        done.append(("forgotten", os.fstat(handle).st_size))

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "posix_fadvise", advised)
    Place(f"file://{tmp_path}/store").put_file(local, "a")
    steps = [(step, size) for size in (1 << 20, 2 << 20) for step in ("synced", "forgotten")]
    assert done[:5] == [*steps, ("synced", 3_000_000)]


def test_what_is_put_is_on_the_disk_by_each_of_its_names(
    tmp_path: Path, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes before they have their name, then that name, then that of the folder, which may be new."""
    fsync, synced, store = os.fsync, [], tmp_path / "store"

    def watched(handle: int) -> None:
        fsync(handle)
        path = Path(f"/proc/self/fd/{handle}").readlink()
        synced.append((path if path.is_dir() else path.suffix, (store / "job" / "a").exists()))

    monkeypatch.setattr(os, "fsync", watched)
    Place(store.as_uri()).put_file(local, "job/a")
    assert synced == [(".part", False), (store / "job", True), (store, True)]


def test_a_source_that_shrinks_is_noticed(tmp_path: Path, local: Path) -> None:
    def shrink(done: int, _total: int | None) -> None:
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


def test_of_names_that_are_patterns_only_the_target_s_own_leftovers_are_cleared(tmp_path: Path, local: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    own, other = store / ".[ab].1.part", store / ".a.1.part"
    for path in (own, other):
        path.write_bytes(b"x")
        os.utime(path, (0, 0))
    Place(store.as_uri()).put_file(local, "[ab]")
    assert sorted(path.name for path in store.iterdir()) == [".a.1.part", "[ab]"]


def test_writers_of_one_name_do_not_fail_each_other(tmp_path: Path) -> None:
    place = Place(f"file://{tmp_path}/store")
    with ThreadPoolExecutor(6) as writers:
        for written in [writers.submit(place.put_bytes, b"x", "a") for _ in range(300)]:
            written.result()
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["a"]


def test_a_name_is_absent_until_it_is_whole(tmp_path: Path, local: Path) -> None:
    place = Place(f"file://{tmp_path}/store")
    seen: list[bool] = []
    place.put_file(local, "a", lambda _done, _total: seen.append(place.exists("a")))
    assert set(seen) == {False}
    assert place.exists("a")


def test_files_have_the_mode_that_the_user_chose(tmp_path: Path, local: Path) -> None:
    before = os.umask(0o027)
    try:
        Place(f"file://{tmp_path}/store").put_file(local, "a")
    finally:
        os.umask(before)
    assert (tmp_path / "store" / "a").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("root", ["a-file", "a-file/inside"])
def test_a_folder_that_is_a_file(local: Path, tmp_path: Path, root: str) -> None:
    (tmp_path / "a-file").touch()
    place = Place(f"file://{tmp_path}/{root}")
    for attempt in (lambda: place.put_file(local, "job/weights"), place.check_writable):
        with pytest.raises(PlaceMissingError, match=f"{tmp_path}/{root}.* cannot be created"):
            attempt()
