"""What the storage says to a download: statuses, checksums, sizes and redirects."""

import gzip
import hashlib
from pathlib import Path

import pytest

from finetune_worker.transfer.errors import NeedNewUrl, NoAnswer, Refused, StartOver, TransferError
from finetune_worker.transfer.limits import TransferLimits
from transfer.bucket import CONTENT, SIGNATURE, Bucket, digest, failure, get, google_hash
from wire.rawserver import Heard, RawServer, Wire


@pytest.mark.parametrize(
    ("status", "expect"),
    [
        (400, (Refused, "unexpected_status")),
        (401, (NeedNewUrl, "weights_url_refused")),
        (403, (NeedNewUrl, "weights_url_refused")),
        (404, (Refused, "weights_gone")),
        (410, (Refused, "weights_gone")),
        (408, (NoAnswer, "storage_busy")),
        (429, (NoAnswer, "storage_busy")),
        (500, (NoAnswer, "storage_busy")),
        (503, (NoAnswer, "storage_busy")),
        (204, (Refused, "unexpected_status")),
        (304, (Refused, "unexpected_status")),
        (302, (Refused, "unexpected_status")),
    ],
)
def test_a_status_is_classified_and_keeps_what_came(
    server: RawServer, part: Path, bucket: Bucket, status: int, expect: tuple[type[TransferError], str]
) -> None:
    bucket.cuts = [300_000]
    failure(server, part)

    def no(wire: Wire, heard: Heard) -> bool:
        wire.reply(status, b"<Error/>" if status not in {204, 304} else b"", Retry_After="9")
        return True

    bucket.answer = no
    error = failure(server, part)
    assert (type(error), error.code) == expect
    assert f" answered {status}" in error.detail
    assert error.retry_after == (9.0 if error.code == "storage_busy" else None)
    bucket.answer = None
    assert get(server, part).sha256 == digest(CONTENT)
    assert bucket.heard[2].headers["range"] == "bytes=300000-"


@pytest.mark.parametrize("encoding", ["gzip", "br", "GZIP"])
def test_a_compressed_reply_is_never_taken_for_the_file(
    server: RawServer, part: Path, bucket: Bucket, encoding: str
) -> None:
    bucket.content = gzip.compress(CONTENT)
    bucket.headers = {"Content-Encoding": encoding}
    error = failure(server, part)
    assert (type(error), error.code) == (Refused, "encoded_reply")
    assert part.read_bytes() == b""


@pytest.mark.parametrize(
    ("headers", "checked"),
    [
        ({"x-goog-hash": google_hash(CONTENT, "md5", "crc32c")}, "crc32c"),
        ({"x-goog-hash": google_hash(CONTENT, "crc32c")}, "crc32c"),
        ({"x-goog-hash": google_hash(CONTENT, "md5")}, "md5"),
        ({"ETag": f'"{hashlib.md5(CONTENT).hexdigest()}"', "x-amz-request-id": "1"}, "md5"),
    ],
)
def test_the_storages_checksum_is_compared(
    server: RawServer, part: Path, bucket: Bucket, headers: dict[str, str], checked: str
) -> None:
    bucket.etag = None
    bucket.headers = {"ETag": '"v1"'} | headers
    bucket.content = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    error = failure(server, part)
    assert (type(error), error.code, error.retryable) == (StartOver, "damaged", True)
    assert checked in error.detail
    assert part.read_bytes() == b""
    bucket.content = CONTENT
    assert get(server, part).checked == checked


def test_damage_in_the_kept_bytes_is_found_in_the_end(server: RawServer, part: Path, bucket: Bucket) -> None:
    bucket.headers = {"x-goog-hash": google_hash(CONTENT, "crc32c")}
    bucket.cuts = [300_000]
    failure(server, part)
    with part.open("r+b") as file:
        file.write(b"\x00" if CONTENT[0] else b"\x01")
    assert failure(server, part).code == "damaged"
    assert get(server, part).sha256 == digest(CONTENT)


def test_too_large_is_refused_before_and_on_the_way(server: RawServer, part: Path, bucket: Bucket) -> None:
    small = TransferLimits(max_bytes=600_006)
    error = failure(server, part, limits=small)
    assert (type(error), error.code) == (Refused, "too_large")
    assert "600,007" in error.detail
    bucket.headers = {"Content-Length": ""}
    error = failure(server, part, limits=small)
    assert (type(error), error.code) == (Refused, "too_large")
    assert part.read_bytes() == b""
    assert get(server, part, limits=TransferLimits(max_bytes=600_007)).size == 600_007


# --- Redirects ---


def redirecting(bucket: Bucket, hops: int) -> None:
    def answer(wire: Wire, heard: Heard) -> bool:
        number = int(heard.path.removeprefix("/hop") or 0) if heard.path.startswith("/hop") else 0
        if number == hops:
            return False
        wire.reply(302, b"x" * 100, Location=f"/hop{number + 1}?sig={SIGNATURE}")
        return True

    bucket.answer = answer


def test_three_redirects_are_followed_and_resume_too(server: RawServer, part: Path, bucket: Bucket) -> None:
    redirecting(bucket, 3)
    bucket.cuts = [300_000]
    failure(server, part)
    assert get(server, part).sha256 == digest(CONTENT)
    assert [heard.headers.get("range") for heard in bucket.heard[4:]] == ["bytes=300000-"] * 4


def test_a_fourth_redirect_is_not_followed(server: RawServer, part: Path, bucket: Bucket) -> None:
    redirecting(bucket, 9)
    error = failure(server, part)
    assert (type(error), error.code) == (Refused, "too_many_redirects")
    assert len(bucket.heard) == 4


@pytest.mark.parametrize(
    "target", ["http://storage.example/x", "ftp://127.0.0.1/x", "file:///etc/passwd", "//a:b@c.example/"]
)
def test_a_redirect_to_where_nothing_may_go_is_refused(
    server: RawServer, part: Path, bucket: Bucket, target: str
) -> None:
    def answer(wire: Wire, heard: Heard) -> bool:
        wire.reply(302, Location=target)
        return True

    bucket.answer = answer
    error = failure(server, part)
    assert (type(error), error.code) == (Refused, "url_not_allowed")


def test_loopback_is_only_for_the_sandbox(part: Path, bucket: Bucket) -> None:
    with RawServer(bucket.talk) as server:
        error = failure(server, part, allow_loopback=False)
    assert (type(error), error.code) == (Refused, "url_not_allowed")
    assert server.connections == 0
