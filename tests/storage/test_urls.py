"""Which URLs are places."""

from pathlib import Path

import pytest

from finetune_queue.storage import BadUrlError, Place
from finetune_queue.storage.urls import ObjectAddress, parse_url


def test_folders(tmp_path: Path) -> None:
    assert parse_url("file:///srv/art") == Path("/srv/art")
    assert parse_url("file://localhost/srv/a%20b") == Path("/srv/a b")
    assert parse_url("file://./var/x") == tmp_path / "var/x"
    assert parse_url("FILE:///srv") == Path("/srv")
    assert parse_url((tmp_path / "ä b%20").as_uri()) == tmp_path / "ä b%20"


def test_a_relative_folder_is_fixed_when_the_place_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place("file://./store")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    place.put_bytes(b"x", "a")
    assert (tmp_path / "store" / "a").read_bytes() == b"x"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket", ObjectAddress("s3", "bucket", "")),
        ("s3://bucket/", ObjectAddress("s3", "bucket", "")),
        ("gs://bucket/a/b/", ObjectAddress("gs", "bucket", "a/b")),
        ("az://container/a?b#c", ObjectAddress("az", "container", "a?b#c")),
    ],
)
def test_buckets(url: str, expected: ObjectAddress) -> None:
    assert parse_url(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/srv/art",
        "./art",
        "file://srv/art",
        "file://",
        "file://~/art",
        "file:///a%00b",
        "http://host/a",
        "https://host/a",
        "s3://",
        "s3:///key",
        "s3://key:secret@bucket/a",
        "s3://bucket::https://host",
        "s3://bucket/a::file:///etc/passwd",
        "memory://x",
        "s3://bucket/a\nb",
        "file:///srv/a\tb",
    ],
)
def test_everything_else_is_refused_with_what_to_use(url: str) -> None:
    with pytest.raises(BadUrlError, match="file:///absolute/folder") as caught:
        Place(url)
    assert "secret" not in caught.value.sentence
    assert not caught.value.retryable
