"""Datasets through the gateway into the staging store, streamed and bounded."""

import errno
import hashlib
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from finetune_queue.errors import InvalidRequestError
from finetune_queue.gateway import edge
from finetune_queue.sdk import FineTuneQueue
from gateway.serving import AUTH, MakeSettings, Start
from support.images import image_bytes, make_dataset_zip, make_zip
from support.samples import sample
from support.until import until

ZIP = {"Content-Type": "application/zip"}


@pytest.fixture
def archive(tmp_path: Path) -> bytes:
    return make_dataset_zip(tmp_path / "faces.zip").read_bytes()


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, apart from everybody else's."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_a_zip_becomes_a_url_for_a_request(http: httpx.Client, archive: bytes, temporary: Path) -> None:
    reply = http.post("/v1/datasets", content=archive, headers=ZIP)
    assert reply.status_code == 201, reply.text
    body = reply.json()
    assert body["sha256"] == hashlib.sha256(archive).hexdigest()
    assert body["bytes"] == len(archive)
    assert Path(urlsplit(body["dataset"]).path).read_bytes() == archive
    assert http.post("/v1/jobs", json=sample(dataset=body["dataset"])).status_code == 202
    assert http.post("/v1/datasets", content=archive, headers=ZIP).json() == body
    assert list(temporary.iterdir()) == []


def test_the_sdk_stages_the_same_archive_under_the_same_name(
    http: httpx.Client, queue: FineTuneQueue, tmp_path: Path, archive: bytes
) -> None:
    job = queue.submit(sample(dataset=str(tmp_path / "faces.zip")))
    staged = Path(urlsplit(job.record.request.dataset).path)
    assert http.post("/v1/datasets", content=staged.read_bytes(), headers=ZIP).json()["dataset"] == staged.as_uri()


def test_an_upload_in_pieces_of_unknown_length(http: httpx.Client, archive: bytes) -> None:
    def pieces() -> Iterator[bytes]:
        for start in range(0, len(archive), 7):
            yield archive[start : start + 7]

    reply = http.post("/v1/datasets", content=pieces(), headers=ZIP)
    assert reply.json()["sha256"] == hashlib.sha256(archive).hexdigest()


@pytest.mark.parametrize(
    ("content", "headers", "expected"),
    [
        (b"", ZIP, (422, "invalid-request")),
        (b"not a zip at all", ZIP, (422, "invalid-request")),
        (b"PK", {"Content-Type": "image/png"}, (415, "unsupported-media-type")),
        (b"PK", {}, (415, "unsupported-media-type")),
    ],
)
def test_what_is_no_zip_is_refused(
    http: httpx.Client, staging: Path, content: bytes, headers: dict[str, str], expected: tuple[int, str]
) -> None:
    reply = http.post("/v1/datasets", content=content, headers=headers)
    assert (reply.status_code, reply.json()["code"]) == expected
    assert not staging.exists()


@pytest.mark.parametrize(
    "files",
    [{}, {"notes.txt": b"hello"}, {"__MACOSX/._a.jpg": image_bytes()}, {"a.jpg": b"no picture"}, {"a.jpg": b""}],
    ids=["empty", "captions", "junk", "no-picture", "nothing"],
)
def test_a_zip_that_can_never_train_is_refused_in_the_sdk_s_words(
    http: httpx.Client, queue: FineTuneQueue, staging: Path, tmp_path: Path, files: dict[str, bytes]
) -> None:
    path = make_zip(tmp_path / "useless.zip", files)
    reply = http.post("/v1/datasets", content=path.read_bytes(), headers=ZIP)
    assert (reply.status_code, reply.json()["code"]) == (422, "invalid-request")
    assert ("The ZIP has no files in it." if not files else "It has no usable image.") in reply.json()["detail"]
    with pytest.raises(InvalidRequestError) as refused:
        queue.submit(sample(dataset=str(path)))
    assert f"dataset: {reply.json()['detail']}" in refused.value.problems
    assert not staging.exists()


def test_an_image_is_one_by_its_content(http: httpx.Client, tmp_path: Path) -> None:
    path = make_zip(tmp_path / "odd.zip", {"notes.txt": b"hello", "broken": b"", "photo": image_bytes()})
    assert http.post("/v1/datasets", content=path.read_bytes(), headers=ZIP).status_code == 201


def test_a_truncated_zip_is_refused_in_the_sdk_s_words(
    http: httpx.Client, queue: FineTuneQueue, tmp_path: Path, archive: bytes
) -> None:
    (tmp_path / "cut.zip").write_bytes(archive[:-100])
    reply = http.post("/v1/datasets", content=archive[:-100], headers=ZIP)
    assert reply.status_code == 422
    with pytest.raises(InvalidRequestError) as refused:
        queue.submit(sample(dataset=str(tmp_path / "cut.zip")))
    assert refused.value.problems == [f"dataset: {reply.json()['detail']}"]


@pytest.mark.parametrize("declared", [True, False])
def test_a_dataset_that_is_too_large_is_cut_off_and_leaves_nothing(
    http: httpx.Client, temporary: Path, monkeypatch: pytest.MonkeyPatch, *, declared: bool
) -> None:
    monkeypatch.setattr(edge, "MAX_ARCHIVE_BYTES", 3_000_000)

    def pieces() -> Iterator[bytes]:
        for _ in range(64):
            yield b"x" * 65536

    headers = {**ZIP, "Content-Length": str(64 * 65536)} if declared else ZIP
    try:
        reply = http.post("/v1/datasets", content=pieces(), headers=headers)
    except httpx.WriteError:
        pass  # the server had answered and closed already
    else:
        assert (reply.status_code, reply.json()["code"]) == (413, "too-large")
    assert list(temporary.iterdir()) == []


def test_an_upload_that_breaks_off_leaves_nothing(url: str, temporary: Path, archive: bytes) -> None:
    def pieces() -> Iterator[bytes]:
        yield archive[:1000]
        raise ConnectionAbortedError

    with pytest.raises(ConnectionAbortedError), httpx.Client(headers=AUTH, trust_env=False) as http:
        http.post(f"{url}/v1/datasets", content=pieces(), headers=ZIP)
    until(lambda: list(temporary.iterdir()) == [], seconds=30)


def test_a_full_temporary_folder_is_said(http: httpx.Client, archive: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        name = "full"

        def flush(self) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def __exit__(self, *_: object) -> None:
            self.flush()  # as a file does with what is left in its buffer

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", lambda **_: Full())
    reply = http.post("/v1/datasets", content=archive, headers=ZIP)
    assert (reply.status_code, reply.json()["code"], reply.headers["retry-after"]) == (503, "busy", "30")
    assert "No space left on device" in reply.json()["detail"]


def test_a_staging_store_that_takes_nothing_is_said(
    make_settings: MakeSettings, start: Start, tmp_path: Path, archive: bytes
) -> None:
    (tmp_path / "file").write_bytes(b"")
    url = start(make_settings(finetune_staging_url=f"file://{tmp_path}/file"))
    reply = httpx.post(f"{url}/v1/datasets", content=archive, headers={**AUTH, **ZIP}, trust_env=False)
    assert (reply.status_code, reply.json()["code"]) == (503, "staging-unavailable")
    assert "retry-after" in reply.headers


def test_what_a_staging_store_of_any_name_gives_a_request_takes(
    make_settings: MakeSettings, start: Start, bucket: str, archive: bytes
) -> None:
    place = f"s3://{bucket}/mein Bestand/ä%20b"
    url = start(make_settings(finetune_staging_url=place))
    with httpx.Client(base_url=url, headers=AUTH, timeout=30, trust_env=False) as http:  # it loads the driver first
        staged = http.post("/v1/datasets", content=archive, headers=ZIP).json()
        taken = http.post("/v1/jobs", json=sample(dataset=staged["dataset"]))
    assert staged["dataset"] == f"{place}/{staged['sha256']}.zip"
    assert taken.status_code == 202, taken.text
