"""What every place does, on a folder, on a real S3 API, and on the emulators that `make clouds-test` brings."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote

import pytest

from finetune_queue.storage import ObjectMissingError, Place
from finetune_queue.storage.place import checked_name
from support.clouds import Store

# Of aiohttp, when gcsfs gives it a part of 8 MB: sending it takes the loop no time that anyone waits for.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")

LARGE = 20_000_000
LARGE_FOR_AZURE = 80_000_000
"""What is below 64 MB its library sends as one."""


@pytest.fixture
def local(tmp_path: Path) -> Path:
    path = tmp_path / "weights.bin"
    path.write_bytes(os.urandom(100_000))
    return path


@pytest.fixture
def large(place: Place, tmp_path: Path) -> Path:
    """What every store takes in pieces."""
    path = tmp_path / "large"
    path.write_bytes(os.urandom(LARGE_FOR_AZURE if place.url.startswith("az:") else LARGE))
    return path


def test_what_is_put_can_be_read(place: Place, local: Path) -> None:
    stored = place.put_file(local, "job/weights.safetensors")
    assert stored.size == 100_000
    assert stored.etag
    assert place.info("job/weights.safetensors") == stored
    with place.open_read("job/weights.safetensors") as file:
        assert file.read(10) + file.read() == local.read_bytes()


def test_small_objects(place: Place) -> None:
    place.put_bytes(b"{}", "job/manifest.json")
    assert place.info("job/manifest.json").size == 2
    with place.open_read("job/manifest.json") as file:
        assert file.read() == b"{}"


def test_an_empty_file(place: Place, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert place.put_file(tmp_path / "empty", "empty").size == 0
    with place.open_read("empty") as file:
        assert file.read() == b""


def test_a_large_file_goes_in_pieces_and_tells_its_progress(place: Place, large: Path) -> None:
    size = large.stat().st_size
    seen: list[tuple[int, int | None]] = []
    assert place.put_file(large, "large", lambda done, total: seen.append((done, total))).size == size
    assert len(seen) >= 3
    counts = [done for done, _ in seen]
    assert counts == sorted(counts)
    assert seen[-1] == (size, size)
    with place.open_read("large") as file:
        assert file.read() == large.read_bytes()


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_what_a_killed_process_had_begun_is_not_there(place: Place, large: Path) -> None:
    child = os.fork()
    if child == 0:
        try:
            place.put_file(large, "large", lambda done, _total: os.kill(os.getpid(), signal.SIGKILL) if done else None)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not place.exists("large")


def test_a_put_replaces(place: Place, local: Path) -> None:
    place.put_bytes(b"old", "name")
    before = place.info("name")
    after = place.put_file(local, "name")
    assert before.etag != after.etag
    with place.open_read("name") as file:
        assert file.read() == local.read_bytes()


def test_what_is_not_there(place: Place) -> None:
    assert not place.exists("nothing")
    for ask in (place.info, place.open_read):
        with pytest.raises(ObjectMissingError) as caught:
            ask("nothing")
        assert caught.value.code == "object_missing"
        assert not caught.value.retryable


def test_a_folder_is_no_object(place: Place) -> None:
    place.put_bytes(b"x", "a/b")
    assert place.exists("a/b")
    with pytest.raises(ObjectMissingError):
        place.open_read("a")


def test_delete(place: Place) -> None:
    place.put_bytes(b"x", "a/b")
    for _ in range(2):  # one that is gone is no error
        place._backend.delete("a/b")
    assert not place.exists("a/b")


VERSIONS = ["a?versionId=b", "a?versionid=b", "a?generation=1", "a#1"]
"""What the stores' libraries read as a version of `a`."""


@pytest.mark.parametrize("name", ["a b/ü.zip", "a#b", "a?b&c=d", "a?b#c", "a%20b+c", "[a]*", *VERSIONS])
def test_urls_lead_back(place: Place, name: str) -> None:
    place.put_bytes(b"x", name)
    url = place.url_of(name)
    assert url.startswith(place.url)
    folder, _, last = url.rpartition("/")
    there = Place(folder)
    # A file:// URL is percent-encoded, as its standard wants; a bucket's holds the key as it is.
    assert there.exists(unquote(last) if folder.startswith("file:") else last)
    assert not place.exists("a")
    if url.startswith("file:"):
        assert Path(unquote(url.removeprefix("file://"))).read_bytes() == b"x"


@pytest.mark.parametrize("name", VERSIONS)
def test_no_name_leads_to_another_object(place: Place, name: str) -> None:
    place.put_bytes(b"the other", "a")
    assert not place.exists(name)
    with pytest.raises(ObjectMissingError):
        place.open_read(name)
    place.put_bytes(b"its own", name)
    for each, content in ((name, b"its own"), ("a", b"the other")):
        with place.open_read(each) as file:
            assert file.read() == content
    place._backend.delete(name)
    assert place.exists("a")


def test_a_missing_local_file_is_the_callers_error(place: Place, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        place.put_file(tmp_path / "nothing", "a")


def test_check_writable_leaves_nothing_in_a_folder(tmp_path: Path) -> None:
    Place(f"file://{tmp_path}/store").check_writable()
    assert list((tmp_path / "store").iterdir()) == []


def test_check_writable_leaves_nothing_in_a_bucket(store: Store) -> None:
    Place(store.url).check_writable()
    assert store.names() == []


def test_threads_share_a_place(place: Place) -> None:
    def work(number: int) -> bytes:
        place.put_bytes(str(number).encode(), f"{number}")
        with place.open_read(f"{number}") as file:
            return file.read()

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(work, range(8))) == [str(number).encode() for number in range(8)]


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_process_can_use_it_too(place: Place) -> None:
    place.put_bytes(b"before", "name")
    child = os.fork()
    if child == 0:
        # Nothing of pytest may run in the child.
        code = 1
        try:
            code = 0 if place.exists("name") else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("name", ["", "/a", "../a", "a/../b", "a//b", "./a", "a/", "a\\b", "a\0"])
def test_names_stay_inside(name: str) -> None:
    with pytest.raises(ValueError, match="not the name of an object"):
        checked_name(name)
    with pytest.raises(ValueError, match="not the name of an object"):
        Place("s3://bucket").exists(name)
