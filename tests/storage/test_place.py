"""What every place does, on a folder and on a real S3 API."""

import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from finetune_queue.storage import ObjectMissingError, Place
from finetune_queue.storage.place import checked_name

LARGE = 20_000_000


@pytest.fixture
def local(tmp_path: Path) -> Path:
    path = tmp_path / "weights.bin"
    path.write_bytes(os.urandom(100_000))
    return path


def test_what_is_put_can_be_read(place: Place, local: Path) -> None:
    stored = place.put_file(local, "job/weights.safetensors")
    assert stored.size == 100_000
    assert stored.etag
    assert stored.modified is not None
    assert abs(datetime.now(UTC) - stored.modified) < timedelta(minutes=5)
    assert place.info("job/weights.safetensors") == stored
    with place.open_read("job/weights.safetensors") as file:
        assert file.read(10) + file.read() == local.read_bytes()


def test_small_objects(place: Place) -> None:
    assert place.put_bytes(b"{}", "job/manifest.json").size == 2
    with place.open_read("job/manifest.json") as file:
        assert file.read() == b"{}"


def test_an_empty_file(place: Place, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert place.put_file(tmp_path / "empty", "empty").size == 0
    with place.open_read("empty") as file:
        assert file.read() == b""


def test_a_large_file_goes_in_pieces_and_tells_its_progress(place: Place, tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(os.urandom(LARGE))
    seen: list[tuple[int, int]] = []
    assert place.put_file(path, "large", lambda done, total: seen.append((done, total))).size == LARGE
    assert len(seen) >= 3
    assert seen == sorted(seen)
    assert seen[-1] == (LARGE, LARGE)
    with place.open_read("large") as file:
        assert file.read() == path.read_bytes()


def test_a_put_replaces(place: Place, local: Path) -> None:
    before = place.put_bytes(b"old", "name")
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
    place.delete("nothing")


def test_a_folder_is_no_object(place: Place) -> None:
    place.put_bytes(b"x", "a/b")
    assert place.exists("a/b")
    with pytest.raises(ObjectMissingError):
        place.open_read("a")


def test_delete(place: Place) -> None:
    place.put_bytes(b"x", "a/b")
    place.delete("a/b")
    assert not place.exists("a/b")


def test_urls_lead_back(place: Place) -> None:
    place.put_bytes(b"x", "a b/ü.zip")
    url = place.url_of("a b/ü.zip")
    assert url.startswith(place.url)
    assert Place(url.rpartition("/")[0]).exists("ü.zip")
    path = place.local_path("a b/ü.zip")
    assert path is None or path.read_bytes() == b"x"


def test_a_missing_local_file_is_the_callers_error(place: Place, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        place.put_file(tmp_path / "nothing", "a")


def test_check_writable_leaves_nothing(place: Place, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    place.check_writable()
    if place.local_path("x") is not None:
        assert list((tmp_path / "store").iterdir()) == []
    else:
        client, bucket = request.getfixturevalue("s3"), request.getfixturevalue("bucket")
        assert client.list_objects_v2(Bucket=bucket)["KeyCount"] == 0


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
