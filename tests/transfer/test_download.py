"""Downloads that are cut, changed and slow: the right bytes in the end, or a clear error; never a mixture."""

import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from finetune_worker.transfer import partfile
from finetune_worker.transfer.download import Download
from finetune_worker.transfer.errors import NoAnswer, StartOver, TryAgain
from finetune_worker.transfer.limits import TransferLimits
from finetune_worker.transfer.partfile import discard
from transfer.bucket import CONTENT, OTHER, SIGNATURE, Bucket, digest, failure, get, google_hash
from wire.rawserver import Heard, RawServer, Wire


def test_a_download(server: RawServer, part: Path, bucket: Bucket) -> None:
    seen: list[tuple[int, int | None]] = []
    done = get(server, part, on_progress=lambda done, total: seen.append((done, total)))
    assert done == Download(size=len(CONTENT), sha256=digest(CONTENT), checked=None)
    assert part.read_bytes() == CONTENT
    assert seen[0] == (0, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    (heard,) = bucket.heard
    assert (heard.method, heard.headers["accept-encoding"]) == ("GET", "identity")
    assert not {"range", "if-range", "x-api-key", "cookie", "authorization"} & heard.headers.keys()
    discard(part)
    assert list(part.parent.iterdir()) == []


def test_an_empty_object(server: RawServer, part: Path, bucket: Bucket) -> None:
    bucket.content = b""
    assert get(server, part).size == 0


# --- Resuming ---

CUTS = [0, 1, 8191, 8192, 262_143, 262_144, 262_145, 600_006]


@pytest.mark.parametrize("cut", CUTS)
def test_a_cut_download_goes_on(server: RawServer, part: Path, bucket: Bucket, cut: int) -> None:
    bucket.cuts = [cut]
    error = failure(server, part)
    assert (type(error), error.code, error.retryable) == (TryAgain, "connection_lost", True)
    done = get(server, part)
    assert (done.sha256, done.size) == (digest(CONTENT), len(CONTENT))
    assert part.read_bytes() == CONTENT
    first, second = bucket.heard
    assert "range" not in first.headers
    if cut:
        assert second.headers["range"] == f"bytes={cut}-"
        assert second.headers["if-range"] == '"v1"'


@pytest.mark.parametrize("cut", CUTS)
def test_a_reset_download_goes_on(server: RawServer, part: Path, bucket: Bucket, cut: int) -> None:
    """A reset may overtake bytes that were sent before it: some of them are kept."""
    bucket.cuts, bucket.reset = [cut], True
    error = failure(server, part)
    assert (type(error), error.code) == (TryAgain, "connection_lost")
    kept = part.stat().st_size
    assert kept <= cut
    assert get(server, part).sha256 == digest(CONTENT)
    assert bucket.heard[1].headers.get("range") == (f"bytes={kept}-" if kept else None)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 200_000), max_size=5), st.sampled_from(['"v1"', 'W/"v1"', None]), st.booleans())
def test_any_cuts_end_in_the_right_hash(
    tmp_path: Path,
    cuts: list[int],
    etag: str | None,
    ranges: bool,  # noqa: FBT001
) -> None:
    bucket, part = Bucket(), tmp_path / "any.part"
    bucket.cuts, bucket.etag, bucket.ranges = list(cuts), etag, ranges
    bucket.headers = {"x-goog-hash": google_hash(CONTENT, "crc32c", "md5")}
    with RawServer(bucket.talk) as server:
        for _ in cuts:
            assert type(failure(server, part)) is TryAgain
        done = get(server, part)
    assert done.sha256 == digest(CONTENT)
    assert done.checked == "crc32c"
    assert part.read_bytes() == CONTENT
    discard(part)


def test_an_object_that_changed_between_is_taken_whole(server: RawServer, part: Path, bucket: Bucket) -> None:
    bucket.cuts = [300_000]
    failure(server, part)
    bucket.content, bucket.etag = OTHER, '"v2"'
    done = get(server, part)
    assert done.sha256 == digest(OTHER)
    assert bucket.heard[1].headers["if-range"] == '"v1"'
    assert part.read_bytes() == OTHER


def test_a_server_that_ignores_ranges_sends_it_all_again(server: RawServer, part: Path, bucket: Bucket) -> None:
    bucket.cuts, bucket.ranges = [300_000], False
    failure(server, part)
    assert get(server, part).sha256 == digest(CONTENT)


@pytest.mark.parametrize("etag", ['W/"v1"', None, "", "v1", '"a"b"'])
def test_without_a_strong_etag_nothing_is_resumed(
    server: RawServer, part: Path, bucket: Bucket, etag: str | None
) -> None:
    bucket.cuts, bucket.etag = [300_000], etag
    failure(server, part)
    assert get(server, part).sha256 == digest(CONTENT)
    assert "range" not in bucket.heard[1].headers


def test_without_a_length_nothing_is_resumed(server: RawServer, part: Path, bucket: Bucket) -> None:
    bucket.headers = {"Content-Length": ""}
    seen: list[tuple[int, int | None]] = []
    done = get(server, part, on_progress=lambda done, total: seen.append((done, total)))
    assert done.sha256 == digest(CONTENT)
    assert seen[0] == (0, None)
    assert not part.with_name("w.part.json").exists()


def test_a_chunked_reply_that_breaks_off_is_seen(server: RawServer, part: Path, bucket: Bucket) -> None:
    def chunks(wire: Wire, heard: Heard) -> bool:
        wire.say(b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n5\r\nab")
        return True

    bucket.answer = chunks
    assert failure(server, part).code == "connection_lost"


BAD_RESTS: dict[str, tuple[str, str | None, int]] = {
    "another start": ("bytes 299999-600006/600007", '"v1"', 300_008),
    "a later start": ("bytes 300001-600006/600007", '"v1"', 300_006),
    "another total": ("bytes 300000-600007/600008", '"v1"', 300_008),
    "another etag": ("bytes 300000-600006/600007", '"v2"', 300_007),
    "a weak etag": ("bytes 300000-600006/600007", 'W/"v1"', 300_007),
    "unknown total": ("bytes 300000-600006/*", '"v1"', 300_007),
    "no range": ("", '"v1"', 300_007),
    "nonsense": ("pages 1-2/3", '"v1"', 300_007),
    "an end past the total": ("bytes 300000-600007/600007", '"v1"', 300_008),
    "more bytes than announced": ("bytes 300000-600006/600007", '"v1"', 300_008),
}


@pytest.mark.parametrize("name", BAD_RESTS)
def test_a_rest_that_does_not_fit_is_never_joined(server: RawServer, part: Path, bucket: Bucket, name: str) -> None:
    content_range, etag, length = BAD_RESTS[name]
    bucket.cuts = [300_000]
    failure(server, part)

    def rest(wire: Wire, heard: Heard) -> bool:
        wire.reply(206, b"x" * length, Content_Range=content_range, ETag=etag or "")
        return True

    bucket.answer = rest
    error = failure(server, part)
    assert (type(error), error.code) == (StartOver, "object_changed")
    assert part.read_bytes() == b""
    bucket.answer = None
    assert get(server, part).sha256 == digest(CONTENT)
    assert "range" not in bucket.heard[2].headers


def test_a_rest_in_pieces_is_joined(server: RawServer, part: Path, bucket: Bucket) -> None:
    """A server may send less than was asked for, as long as it says so."""
    bucket.cuts = [300_000]
    failure(server, part)

    def rest(wire: Wire, heard: Heard) -> bool:
        wire.reply(206, CONTENT[300_000:400_000], Content_Range="bytes 300000-399999/600007", ETag='"v1"')
        return True

    bucket.answer = rest
    assert failure(server, part).code == "cut_short"
    bucket.answer = None
    assert get(server, part).sha256 == digest(CONTENT)
    assert bucket.heard[2].headers["range"] == "bytes=400000-"


def test_416_starts_over(server: RawServer, part: Path, bucket: Bucket) -> None:
    bucket.cuts = [300_000]
    failure(server, part)

    def short(wire: Wire, heard: Heard) -> bool:
        wire.reply(416, Content_Range="bytes */300000")
        return True

    bucket.answer = short
    error = failure(server, part)
    assert (type(error), error.code) == (StartOver, "object_changed")
    assert part.read_bytes() == b""
    bucket.answer = None
    assert get(server, part).sha256 == digest(CONTENT)


def test_a_whole_part_is_not_asked_for_again(server: RawServer, part: Path, bucket: Bucket) -> None:
    """A worker died between the last byte and the use of the file; the link has ended since."""
    first = get(server, part)
    seen: list[tuple[int, int | None]] = []
    assert get(server, part, on_progress=lambda done, total: seen.append((done, total))) == first
    assert len(bucket.heard) == 1
    assert seen[-1] == (len(CONTENT), len(CONTENT))


def test_the_bytes_kept_are_counted_while_they_are_read_again(
    server: RawServer, part: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of some GB that takes as long as a lease: the stage must show signs of life."""
    monkeypatch.setattr(partfile, "_READ", 100_000)
    bucket.cuts = [300_000]
    failure(server, part)
    seen: list[tuple[int, int | None]] = []
    get(server, part, on_progress=lambda done, total: seen.append((done, total)))
    assert seen[:4] == [(done, len(CONTENT)) for done in (100_000, 200_000, 300_000, 300_000)]


# --- Time and memory ---


def test_a_refused_connection_may_be_tried_again(part: Path) -> None:
    with RawServer(lambda wire: None) as server:
        pass
    error = failure(server, part)
    assert (type(error), error.code) == (NoAnswer, "connect_failed")


def test_silence_is_a_stall_and_keeps_what_came(server: RawServer, part: Path, bucket: Bucket) -> None:
    def silent(wire: Wire, heard: Heard) -> bool:
        wire.say(b'HTTP/1.1 200 X\r\nContent-Length: 600007\r\nETag: "v1"\r\n\r\n' + CONTENT[:1000])
        wire.wait_closed()
        return True

    bucket.answer = silent
    error = failure(server, part, limits=TransferLimits(stall_timeout=0.3))
    assert (type(error), error.code) == (TryAgain, "read_timeout")
    bucket.answer = None
    assert get(server, part).sha256 == digest(CONTENT)
    assert bucket.heard[1].headers["range"] == "bytes=1000-"


def trickle(wire: Wire, heard: Heard) -> bool:
    wire.say(b'HTTP/1.1 200 X\r\nContent-Length: 600007\r\nETag: "v1"\r\n\r\n')
    for byte in CONTENT:
        wire.say(bytes([byte]))
        time.sleep(0.01)
    return True


def trickle_headers(wire: Wire, heard: Heard) -> bool:
    while True:
        wire.say(b"H")
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("answer", "limits"),
    [
        (trickle, TransferLimits(stall_timeout=0.3, min_rate=10_000)),
        (trickle, TransferLimits(total_timeout=0.4)),
        (trickle_headers, TransferLimits(total_timeout=0.4)),
        (trickle_headers, TransferLimits(stall_timeout=0.3, total_timeout=60)),
    ],
)
def test_a_trickle_ends(
    server: RawServer, part: Path, bucket: Bucket, answer: Callable[[Wire, Heard], bool], limits: TransferLimits
) -> None:
    bucket.answer = answer
    began = time.monotonic()
    error = failure(server, part, limits=limits)
    assert time.monotonic() - began < 20
    assert isinstance(error, TryAgain)
    assert error.code == ("stalled" if answer is trickle and limits.stall_timeout < 1 else "call_timeout")
    bucket.answer = None
    assert get(server, part).sha256 == digest(CONTENT)


class Stop(BaseException):
    """What a stage raises to end its work at once."""


@pytest.mark.parametrize("error", [Stop(), RuntimeError("lost the job"), ConnectionResetError(104, "x")], ids=repr)
def test_what_the_progress_raises_is_passed_on_and_the_rest_can_follow(
    server: RawServer, part: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    monkeypatch.setattr("finetune_worker.transfer.limits.STEP_BYTES", 1)

    def on_progress(done: int, total: int | None) -> None:
        if done:
            raise error

    with pytest.raises(type(error)) as caught:
        get(server, part, on_progress=on_progress)
    assert caught.value is error
    kept = part.stat().st_size
    assert 0 < kept < len(CONTENT)
    assert get(server, part).sha256 == digest(CONTENT)
    assert bucket.heard[1].headers["range"] == f"bytes={kept}-"


def test_memory_is_flat(part: Path) -> None:
    size = 200 * 1024 * 1024
    block = bytes(1 << 20)

    def talk(wire: Wire) -> None:
        wire.hear()
        wire.say(f'HTTP/1.1 200 X\r\nContent-Length: {size}\r\nETag: "v1"\r\n\r\n'.encode())
        for _ in range(200):
            wire.say(block)

    calls: list[int] = []
    with RawServer(talk) as server:
        tracemalloc.start()
        try:
            done = get(server, part, on_progress=lambda done, total: calls.append(done))
            assert tracemalloc.get_traced_memory()[1] < 8 * 1024 * 1024
        finally:
            tracemalloc.stop()
    assert done.size == size
    assert 200 // 9 <= len(calls) < 200
    assert calls == sorted(calls)


def test_one_log_line_without_the_signature(
    server: RawServer, part: Path, bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    bucket.cuts = [300_000]
    with capture_logs() as logs, caplog.at_level("DEBUG"):
        failure(server, part)
        get(server, part)
        get(server, part)
    assert [(line["event"], line.get("status"), line["kept"], line["size"]) for line in logs] == [
        ("transfer_get", 200, 0, 300_000),
        ("transfer_get", 206, 300_000, len(CONTENT)),
        ("transfer_kept", None, len(CONTENT), len(CONTENT)),
    ]
    assert "urllib3" in caplog.text
    assert SIGNATURE not in str(logs) + caplog.text
