"""Where datasets come from: roots, links, buckets and public addresses."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_queue.datasets.errors import DatasetError
from finetune_queue.datasets.limits import MAX_ARCHIVE_BYTES
from finetune_queue.public_fetch.addresses import AddressPolicy
from finetune_queue.sources import LocalArchive, PublicArchive, resolve_dataset
from finetune_queue.storage import Place
from support.images import make_dataset_zip
from support.web import Answer, Web

LOOPBACK = AddressPolicy(allow_loopback=True)
BUCKETS = ["s3://bucket", "s3://test-datasets", "gs://test-datasets"]


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    make_dataset_zip(folder / "a.zip", count=2)
    return folder


@pytest.fixture
def resolve(scratch: Path, root: Path) -> Callable[..., PublicArchive | LocalArchive]:
    def call(dataset: str, **options: Any) -> PublicArchive | LocalArchive:
        return resolve_dataset(
            dataset,
            **{
                "roots": [root],
                "buckets": BUCKETS,
                "scratch": scratch,
                "policy": LOOPBACK,
                **options,
            },
        )

    return call


Resolve = Callable[..., PublicArchive | LocalArchive]


def refusal(resolve: Resolve, dataset: str, **options: Any) -> DatasetError:
    with pytest.raises(DatasetError) as caught:
        resolve(dataset, **options)
    return caught.value


def test_a_file_under_a_root(resolve: Resolve, root: Path) -> None:
    path = root / "a.zip"
    expected = LocalArchive(path=path, size=path.stat().st_size)
    assert resolve(path.as_uri()) == expected
    assert resolve(str(path)) == expected
    assert resolve(f"{root}/sub/../a.zip") == expected


def test_a_staged_file_is_found_by_its_url(resolve: Resolve, tmp_path: Path, root: Path) -> None:
    place = Place(f"file://{tmp_path}/staging folder".replace(" ", "%20"))
    place.put_file(root / "a.zip", "ab c.zip")
    assert (
        resolve(place.url_of("ab c.zip"), roots=[tmp_path / "staging folder"]).size == (root / "a.zip").stat().st_size
    )


def test_links_count_by_where_they_lead(resolve: Resolve, root: Path, tmp_path: Path) -> None:
    outside = make_dataset_zip(tmp_path / "outside.zip", count=1)
    (root / "inner.zip").symlink_to(root / "a.zip")
    (root / "outer.zip").symlink_to(outside)
    (root / "up").symlink_to(tmp_path)
    (root / "loop.zip").symlink_to(root / "loop.zip")
    assert resolve(f"{root}/inner.zip").size == (root / "a.zip").stat().st_size
    for name in ("outer.zip", "up/outside.zip"):
        assert refusal(resolve, f"{root}/{name}").code == "dataset_not_allowed"
    assert refusal(resolve, f"{root}/loop.zip").code in ("dataset_not_found", "dataset_not_allowed")
    (tmp_path / "linked").symlink_to(root)
    assert isinstance(resolve(f"{root}/a.zip", roots=[tmp_path / "linked"]), LocalArchive)


@pytest.mark.parametrize(
    "dataset",
    [
        "/etc/passwd",
        "file:///etc/passwd",
        "file:///nothing/here.zip",
        "{root}/../outside.zip",
        "file://{root}/%2e%2e/x",
        "{root}x/a.zip",
    ],
)
def test_nothing_outside_of_the_roots_is_told(resolve: Resolve, root: Path, dataset: str) -> None:
    error = refusal(resolve, dataset.format(root=root))
    assert error.code == "dataset_not_allowed"
    assert "FINETUNE_DATASET_ROOTS" in error.fix
    assert "FINETUNE_STAGING_URL" in error.fix  # of another than the producer's, the likeliest reason


def test_without_roots_no_file_is_read(resolve: Resolve, root: Path) -> None:
    assert refusal(resolve, f"{root}/a.zip", roots=[]).code == "dataset_not_allowed"


def test_what_is_no_zip_file_under_a_root(resolve: Resolve, root: Path) -> None:
    assert refusal(resolve, f"{root}/nothing.zip").code == "dataset_not_found"
    assert refusal(resolve, str(root)).code == "dataset_bad_address"
    os.mkfifo(root / "pipe")
    assert refusal(resolve, f"{root}/pipe").code == "dataset_not_found"
    os.truncate(root / "a.zip", MAX_ARCHIVE_BYTES)
    assert refusal(resolve, f"{root}/a.zip").code == "dataset_too_large"


@pytest.mark.parametrize(
    "dataset",
    ["", "a.zip", "./a.zip", "../a.zip", "file://a.zip", "ftp://host/a.zip", "s3://bucket", "s3://k:s@bucket/a", "memory://a",
     "s3://bucket/a::file:///etc/passwd", "s3://bucket/../a", "data:,x", "/a\0b", "file:///a%00b"],
)  # fmt: skip
def test_what_is_no_address(resolve: Resolve, dataset: str) -> None:
    error = refusal(resolve, dataset)
    assert error.code == "dataset_bad_address"
    assert not error.retryable


def test_a_public_zip_is_passed_on(resolve: Resolve, scratch: Path) -> None:
    with Web({"/a.zip": Answer(b"PK" * 500, headers={"ETag": '"7"'})}) as web:
        assert resolve(web.url("/a.zip?sig=1")) == PublicArchive(web.url("/a.zip?sig=1"), 1000)
        assert [method for method, _ in web.seen] == ["HEAD", "GET"]
    assert list(scratch.iterdir()) == []


def test_a_link_for_us_alone_is_fetched_when_asked(resolve: Resolve, scratch: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    with Web({"/a.zip": Answer(b"PK" * 500, methods=("GET",))}) as web:
        error = refusal(resolve, web.url("/a.zip"))
        assert error.code == "dataset_not_public"
        assert "uploaded by us" in error.fix
        found = resolve(web.url("/a.zip"), fetch_public=True, on_progress=lambda *counts: seen.append(counts))
    assert isinstance(found, LocalArchive)
    assert found.path.parent == scratch
    assert found.path.read_bytes() == b"PK" * 500
    assert seen[-1] == (1000, 1000)


@pytest.mark.parametrize(
    ("answer", "code", "retryable"),
    [
        (Answer(status=404), "dataset_not_found", False),
        (Answer(status=403), "dataset_not_public", False),
        (Answer(status=503), "dataset_unavailable", True),
        (Answer(b"x", length=10**9), "dataset_too_large", False),
    ],
)
@pytest.mark.parametrize("fetch_public", [False, True])
def test_a_public_address_that_fails(
    resolve: Resolve, scratch: Path, *, answer: Answer, code: str, retryable: bool, fetch_public: bool
) -> None:
    with Web({"/a.zip": answer}) as web:
        error = refusal(resolve, web.url("/a.zip"), fetch_public=fetch_public)
    assert (error.code, error.retryable) == (code, retryable)
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("url", ["http://127.0.0.1/a.zip", "https://169.254.169.254/latest", "HTTPS://[::1]/a.zip"])
def test_an_inner_address_is_not_allowed(resolve: Resolve, url: str) -> None:
    for fetch_public in (False, True):
        assert refusal(resolve, url, policy=AddressPolicy(), fetch_public=fetch_public).code == "dataset_not_allowed"


def test_no_space_for_what_is_fetched(resolve: Resolve, tmp_path: Path) -> None:
    with Web({"/a.zip": Answer(b"PK")}) as web:
        error = refusal(resolve, web.url("/a.zip"), fetch_public=True, scratch=tmp_path / "gone")
    assert error.code == "dataset_unavailable"
    assert error.retryable
    assert os.strerror(errno.ENOENT) in error.sentence


@pytest.fixture
def bucket(s3: Any, root: Path) -> str:
    """A bucket with the dataset in it, as `sets/a.zip`."""
    name = "test-datasets"
    s3.create_bucket(Bucket=name)
    s3.upload_file(str(root / "a.zip"), name, "sets/a.zip")
    return name


def test_an_object_is_copied(resolve: Resolve, bucket: str, root: Path, scratch: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    found = resolve(f"s3://{bucket}/sets/a.zip", on_progress=lambda *counts: seen.append(counts))
    assert isinstance(found, LocalArchive)
    assert found.path.parent == scratch
    assert found.path.read_bytes() == (root / "a.zip").read_bytes()
    assert seen[-1] == (found.size, found.size)


@pytest.mark.parametrize("key", ["my good.zip", "schön/ß.zip", "a%20b+c?d#e.zip", "a.zip?versionId=1"])
def test_an_object_is_found_by_its_key_as_it_is(resolve: Resolve, bucket: str, s3: Any, root: Path, key: str) -> None:
    s3.upload_file(str(root / "a.zip"), bucket, key)
    assert isinstance(resolve(f"s3://{bucket}/{key}"), LocalArchive)


def test_an_object_that_cannot_be_had(
    resolve: Resolve, bucket: str, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refusal(resolve, f"s3://{bucket}/sets/b.zip").code == "dataset_not_found"
    assert refusal(resolve, f"s3://{bucket}/sets").code == "dataset_not_found"
    assert refusal(resolve, f"s3://{bucket}/sets/a.zip?versionId=x").code == "dataset_not_found"
    assert refusal(resolve, f"s3://{bucket}/sets/a.zip", scratch=scratch / "gone").retryable
    monkeypatch.setattr("finetune_queue.sources.MAX_ARCHIVE_BYTES", 100)
    assert refusal(resolve, f"s3://{bucket}/sets/a.zip").code == "dataset_too_large"
    assert list(scratch.iterdir()) == []


def test_an_object_whose_library_is_not_installed(resolve: Resolve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.delitem(sys.modules, "gcsfs.core", raising=False)
    error = refusal(resolve, "gs://test-datasets/sets/a.zip")
    assert error.code == "dataset_unavailable"
    assert "finetune-queue[gs]" in error.fix


@pytest.mark.parametrize("buckets", [[], ["s3://test-data"], ["s3://test-datasets/set"], ["gs://test-datasets"]])
def test_a_bucket_that_is_not_named_is_not_read(resolve: Resolve, bucket: str, buckets: list[str]) -> None:
    assert refusal(resolve, f"s3://{bucket}/sets/a.zip", buckets=buckets).code == "dataset_not_allowed"


def test_a_prefix_of_a_bucket_may_be_named(resolve: Resolve, bucket: str) -> None:
    assert isinstance(resolve(f"s3://{bucket}/sets/a.zip", buckets=[f"s3://{bucket}/sets/"]), LocalArchive)
    assert (
        refusal(resolve, f"s3://{bucket}/sets/../a.zip", buckets=[f"s3://{bucket}/sets"]).code == "dataset_bad_address"
    )


def test_an_object_that_grows_while_it_is_read(
    resolve: Resolve, bucket: str, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = Place.info

    def smaller(place: Place, name: str) -> Any:
        found = info(place, name)
        return type(found)(found.size - 1, found.etag)

    monkeypatch.setattr(Place, "info", smaller)
    error = refusal(resolve, f"s3://{bucket}/sets/a.zip")
    assert (error.code, error.retryable) == ("dataset_unavailable", True)
    assert list(scratch.iterdir()) == []


def test_packing_and_checking_load_neither_requests_nor_fsspec() -> None:
    code = (
        "import sys; import finetune_queue.sources, finetune_queue.datasets.check, finetune_queue.datasets.pack;"
        "print([name for name in ('requests', 'fsspec', 's3fs') if name in sys.modules]);"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == "[]"


def test_the_package_itself_loads_none_of_this() -> None:
    code = "import sys, finetune_queue; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=30)
    assert not {"PIL", "rich", "requests", "fsspec", "finetune_queue.datasets"} & set(done.stdout.split())
