"""The presigned PUT on the wire, and what each way of failing makes the stage do."""

import os
import tracemalloc
from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from finetune_worker.segmind.models import PresignedUpload
from finetune_worker.transfer.errors import NeedNewUrl, Refused, SourceChanged, TransferError, TryAgain
from finetune_worker.transfer.limits import TransferLimits
from finetune_worker.transfer.put import upload_presigned
from transfer.uploads import CONTENT, QUICK, SIGNED, Storage, failure, presigned, put, xml
from wire.rawserver import RawServer, Wire


def test_the_bytes_and_headers_are_those_of_the_specifications_curl(source: Path, storage: Storage) -> None:
    with RawServer(storage.talk) as server:
        done = put(server, source)
        target = presigned(server).presigned_url.get_secret_value().removeprefix(server.url)
    assert done == len(CONTENT)
    (heard,) = storage.heard
    assert heard.method == "PUT"
    assert heard.path == target.partition("?")[0]
    assert heard.target.endswith(SIGNED)
    assert heard.body == CONTENT
    sent = dict(heard.pairs)
    assert len(sent) == len(heard.pairs)
    assert sent.pop("user-agent").startswith("finetune-queue/")
    assert sent == {
        "host": f"127.0.0.1:{server.port}",
        "content-length": str(len(CONTENT)),
        "content-type": "application/zip",
        "x-amz-acl": "public-read",
        "accept-encoding": "identity",
    }


def test_the_progress_begins_at_nothing_and_ends_whole(source: Path, storage: Storage) -> None:
    seen: list[tuple[int, int | None]] = []
    with RawServer(storage.talk) as server:
        put(server, source, on_progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))


@pytest.mark.parametrize("size", [1, 262_143, 262_144, 262_145])
def test_a_file_of_any_size_arrives_whole(tmp_path: Path, storage: Storage, size: int) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(CONTENT[:size])
    with RawServer(storage.talk) as server:
        put(server, path)
    assert storage.heard[0].body == CONTENT[:size]


def test_memory_is_flat_and_the_progress_is_paced(tmp_path: Path) -> None:
    size = 200 * 1024 * 1024
    path = tmp_path / "x.zip"
    with path.open("wb") as file:
        file.truncate(size)
    got: list[int] = []

    def talk(wire: Wire) -> None:
        heard = wire.head()
        assert heard is not None
        got.append(wire.swallow(heard))
        wire.reply(200)

    calls: list[int] = []
    with RawServer(talk) as server:
        put(
            server,
            tmp_path / "x.zip",
            limits=TransferLimits(max_bytes=size),
            on_progress=lambda done, total: calls.append(done),
        )
        tracemalloc.start()
        try:
            put(server, path)
            assert tracemalloc.get_traced_memory()[1] < 8 * 1024 * 1024
        finally:
            tracemalloc.stop()
    assert got == [size, size]
    assert 200 // 8 <= len(calls) < 200
    assert calls == sorted(calls)


# --- Before anything is sent ---


def test_whether_a_url_ended_is_for_the_storage_to_say(source: Path, storage: Storage) -> None:
    """By its clock: this machine's may be wrong."""
    with RawServer(storage.talk) as server:
        upload = presigned(server, ends=timedelta(hours=-1))
        upload_presigned(upload, source, allow_loopback=True, limits=QUICK)
    assert len(storage.heard) == 1


def test_a_url_signed_for_headers_that_nobody_knows_is_not_tried(source: Path, storage: Storage) -> None:
    with RawServer(storage.talk) as server:
        upload = presigned(server, signed="X-Amz-SignedHeaders=host%3Bx-amz-meta-owner")
        with pytest.raises(Refused, match="x-amz-meta-owner") as caught:
            upload_presigned(upload, source, allow_loopback=True)
    assert (caught.value.code, server.connections) == ("upload_url_unsupported", 0)


@pytest.mark.parametrize("allow", [True, False])
@pytest.mark.parametrize("url", ["http://storage.example/x?k=feedface", "ftp://127.0.0.1/x", "https://a:b@x.example/"])
def test_a_url_that_is_not_https_is_not_tried(source: Path, url: str, *, allow: bool) -> None:
    upload = PresignedUpload.model_validate({"presigned_url": url, "s3_url": url})
    with pytest.raises(Refused) as caught:
        upload_presigned(upload, source, allow_loopback=allow)
    assert caught.value.code == "url_not_allowed"
    assert "feedface" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "x.localhost", "127.9.9.9"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_loopback_is_only_for_the_sandbox(source: Path, scheme: str, host: str) -> None:
    url = f"{scheme}://{host}:1/x"
    upload = PresignedUpload.model_validate({"presigned_url": url, "s3_url": url})
    with pytest.raises(Refused):
        upload_presigned(upload, source)
    with pytest.raises(TryAgain):
        upload_presigned(upload, source, allow_loopback=True)


@pytest.mark.parametrize("kind", ["missing", "empty", "folder", "pipe"])
def test_what_is_no_file_with_bytes_is_not_tried(tmp_path: Path, storage: Storage, kind: str) -> None:
    path = tmp_path / "x"
    match kind:
        case "empty":
            path.touch()
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
    with RawServer(storage.talk) as server:
        error = failure(server, path)
    assert type(error) is SourceChanged
    assert server.connections == 0


# --- What the storage answers ---


@pytest.mark.parametrize(
    ("status", "body", "expect"),
    [
        (403, xml("AccessDenied"), (NeedNewUrl, "upload_url_refused")),
        (403, xml("SignatureDoesNotMatch"), (NeedNewUrl, "upload_url_refused")),
        (403, xml("RequestTimeTooSkewed"), (NeedNewUrl, "upload_url_refused")),
        (403, b"", (NeedNewUrl, "upload_url_refused")),
        (401, b"no", (NeedNewUrl, "upload_url_refused")),
        (400, xml("ExpiredToken"), (NeedNewUrl, "upload_url_refused")),
        (400, xml("AuthorizationQueryParametersError"), (NeedNewUrl, "upload_url_refused")),
        (301, xml("PermanentRedirect"), (NeedNewUrl, "upload_url_refused")),
        (307, xml("TemporaryRedirect"), (NeedNewUrl, "upload_url_refused")),
        (503, xml("SlowDown"), (TryAgain, "storage_busy")),
        (500, xml("InternalError"), (TryAgain, "storage_busy")),
        (502, b"<html>", (TryAgain, "storage_busy")),
        (400, xml("RequestTimeout"), (TryAgain, "storage_busy")),
        (409, xml("OperationAborted"), (TryAgain, "storage_busy")),
        (429, b"", (TryAgain, "storage_busy")),
        (408, b"", (TryAgain, "storage_busy")),
        (400, xml("EntityTooLarge"), (Refused, "too_large")),
        (413, b"", (Refused, "too_large")),
        (404, xml("NoSuchBucket"), (Refused, "storage_gone")),
        (400, xml("BadDigest"), (Refused, "upload_rejected")),
        (501, xml("NotImplemented"), (Refused, "upload_rejected")),
        (411, xml("MissingContentLength"), (Refused, "upload_rejected")),
        (400, b"<Code>" + b"A" * 100 + b"</Code>", (Refused, "upload_rejected")),
        (400, b" " * 20_000 + xml("SlowDown"), (Refused, "upload_rejected")),
        (400, b'<!DOCTYPE a [<!ENTITY b "c">]><Error><Code>&b;</Code></Error>', (Refused, "upload_rejected")),
    ],
)
def test_what_the_storage_says_is_classified(
    source: Path, storage: Storage, status: int, body: bytes, expect: tuple[type[TransferError], str]
) -> None:
    storage.status, storage.body, storage.headers = status, body, {"Retry_After": "7"}
    with RawServer(storage.talk) as server:
        error = failure(server, source)
    assert (type(error), error.code) == expect
    assert f" answered {status}" in error.detail
    assert error.retryable is (type(error) is not Refused)
    assert error.retry_after == (7.0 if error.code == "storage_busy" else None)
    assert "127.0.0.1" in error.detail


def test_a_redirect_gets_no_byte_of_the_dataset(source: Path, storage: Storage) -> None:
    other = Storage()
    with RawServer(other.talk) as trap:
        storage.status, storage.headers = 307, {"Location": f"{trap.url}/x"}
        with RawServer(storage.talk) as server:
            assert type(failure(server, source)) is NeedNewUrl
    assert trap.connections == 0


@pytest.mark.parametrize(
    ("etag", "headers", "damaged"),
    [
        ('"00000000000000000000000000000000"', {}, True),
        ('"00000000000000000000000000000000-3"', {}, False),
        ('"opaque"', {}, False),
        ("", {}, False),
        ('"00000000000000000000000000000000"', {"x_amz_server_side_encryption": "aws:kms"}, False),
    ],
)
def test_a_damaged_upload_is_seen_by_its_etag(
    source: Path,
    storage: Storage,
    etag: str,
    headers: dict[str, str],
    damaged: bool,  # noqa: FBT001
) -> None:
    storage.etag, storage.headers = etag, headers
    with RawServer(storage.talk) as server:
        if damaged:
            error = failure(server, source)
            assert (type(error), error.code) == (TryAgain, "upload_damaged")
        else:
            assert put(server, source) == len(CONTENT)


def test_one_log_line_without_the_signature(source: Path, storage: Storage, caplog: pytest.LogCaptureFixture) -> None:
    storage.status, storage.body = 503, xml("SlowDown")
    with capture_logs() as logs, caplog.at_level("DEBUG"), RawServer(storage.talk) as server:
        failure(server, source)
    (line,) = logs
    assert (line["event"], line["status"], line["storage_code"]) == ("transfer_put", 503, "SlowDown")
    assert (line["size"], line["sent"]) == (len(CONTENT), len(CONTENT))
    assert "urllib3" in caplog.text
    assert "feedface" not in str(logs) + caplog.text
