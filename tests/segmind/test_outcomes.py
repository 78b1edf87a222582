"""What each way of failing is called: above all, whether a submit may have been paid."""

import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, formatdate
from pathlib import Path

import pytest
from pydantic import SecretStr
from urllib3.connection import HTTPConnection

from finetune_worker.segmind.client import SegmindClient
from finetune_worker.segmind.errors import NotSent, OutcomeUnknown, RateLimited, Rejected, Unavailable
from support.api_calls import BIG, KEY, REPEATABLE, REQUEST, Op, failure, replying, submit
from wire.certificates import server_context
from wire.rawserver import RawServer, Wire


@pytest.fixture
def unused_port() -> Iterator[int]:
    """A port that is bound and does not listen: connecting is refused for sure."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


# --- Nothing was sent ---


@pytest.mark.parametrize("call", [submit, *REPEATABLE.values()])
def test_a_refused_connection_sent_nothing(unused_port: int, call: Op) -> None:
    error = failure(f"http://127.0.0.1:{unused_port}", call)
    assert (type(error), error.code, error.retryable, error.status) == (NotSent, "connect_failed", True, None)


def test_a_name_without_an_address_sent_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object, **kwargs: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    error = failure("https://api.segmind.invalid", submit)
    assert (type(error), error.code) == (NotSent, "dns_failed")
    assert "api.segmind.invalid" in error.detail


def test_a_name_server_that_does_not_answer_sent_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: over.wait(60))
    began = time.monotonic()
    error = failure("https://api.segmind.invalid", submit, call_timeout=0.3)
    over.set()
    assert time.monotonic() - began < 20
    assert (type(error), error.code) == (NotSent, "connect_timeout")


def test_a_name_that_no_thread_is_left_to_look_up_sent_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")  # as Python says it

    monkeypatch.setattr(threading.Thread, "start", refuse)
    error = failure("https://api.segmind.invalid", submit)
    assert (type(error), error.code) == (NotSent, "dns_failed")


def test_an_impossible_name_sent_nothing() -> None:
    assert failure(f"https://{'a' * 64}.localhost", submit).code == "dns_failed"


def test_an_untrusted_certificate_sent_nothing(tmp_path: Path) -> None:
    heard: list[bytes] = []
    context, _ = server_context(tmp_path)
    with RawServer(lambda wire: heard.append(wire.sock.recv(100)), tls=context) as server:
        error = failure(server.url, submit)
    assert (type(error), error.code) == (NotSent, "tls_failed")
    assert heard == []


def test_a_server_without_tls_sent_nothing() -> None:
    with RawServer(lambda wire: wire.say(b"HTTP/1.1 400 Bad\r\n\r\n")) as server:
        error = failure(server.url.replace("http", "https"), submit)
    assert (type(error), error.code) == (NotSent, "tls_failed")


def test_a_tls_handshake_that_never_ends_sent_nothing() -> None:
    with RawServer(Wire.wait_closed) as server:
        error = failure(server.url.replace("http", "https"), submit, connect_timeout=0.3)
    assert type(error) is NotSent
    assert error.code in {"read_timeout", "connect_timeout"}


def test_a_connection_that_is_never_accepted_sent_nothing(deaf_port: int) -> None:
    error = failure(f"http://127.0.0.1:{deaf_port}", submit, connect_timeout=0.3)
    assert (type(error), error.code) == (NotSent, "connect_timeout")


def test_of_many_addresses_each_has_its_turn(deaf_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def at(port: int) -> tuple[object, ...]:
        return socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port)

    with RawServer(replying(200, b'{"finetune_id": "a"}')) as server:
        found = [*[at(deaf_port)] * 30, at(int(server.url.rpartition(":")[2]))]
        monkeypatch.setattr("finetune_worker.wire.session.resolve", lambda *_: found)
        began = time.monotonic()
        with SegmindClient("http://127.0.0.1:1", SecretStr(KEY), connect_timeout=0.8) as client:
            assert client.submit(REQUEST).finetune_id == "a"
    assert time.monotonic() - began < 12


def test_a_connection_lost_while_the_headers_leave_sent_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: socket.socket, data: bytes, flags: int = 0) -> int:
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr("finetune_queue.timed_sockets.TimedSocket.send", broken)
    with RawServer(Wire.wait_closed) as server:
        assert type(failure(server.url, submit, read_timeout=0.2)) is NotSent


@pytest.mark.parametrize("call", [submit, REPEATABLE["details"]], ids=["submit", "details"])
def test_a_call_whose_time_was_over_before_its_first_byte_sends_nothing(
    call: Op, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a process that stood still with its connection open: its slot, or its job, may be another's by now."""
    connect = HTTPConnection.connect

    def stand_still(self: HTTPConnection) -> None:
        connect(self)
        time.sleep(0.4)

    monkeypatch.setattr(HTTPConnection, "connect", stand_still)
    heard: list[bytes] = []
    with RawServer(lambda wire: heard.append(wire.sock.recv(100))) as server:
        error = failure(server.url, call, call_timeout=0.3)
    assert (type(error), error.under_way) == (NotSent, False)
    assert heard == [b""]


# --- A clear no ---

NO = {
    400: "request_rejected",
    401: "api_key_rejected",
    402: "credits_exhausted",
    403: "forbidden",
    404: "not_found",
    405: "wrong_address",
    406: "credits_exhausted",
    413: "request_too_large",
    415: "request_rejected",
    422: "request_rejected",
}


@pytest.mark.parametrize("call", [submit, REPEATABLE["details"]])
@pytest.mark.parametrize("status", NO)
def test_a_clear_no(status: int, call: Op) -> None:
    with RawServer(
        replying(status, b'{"error": "no: https://x.example/a?X-Amz-Signature=feed&b=1 %s"}' % KEY.encode())
    ) as server:
        error = failure(server.url, call)
    assert (type(error), error.code, error.status, error.retryable) == (Rejected, NO[status], status, False)
    assert "https://x.example/a?... ***" in error.detail
    assert "feed" not in str(error)


def test_a_no_before_the_body_was_read() -> None:
    """A proxy that answers 413 after the headers and closes: its answer counts, not the broken pipe."""

    def talk(wire: Wire) -> None:
        wire.head()
        wire.reply(413, b"", Connection="close")
        wire.sock.shutdown(socket.SHUT_WR)
        wire.wait_closed()

    with RawServer(talk) as server:
        error = failure(server.url, lambda client: client.submit(BIG))
    assert (type(error), error.code) == (Rejected, "request_too_large")


def test_a_no_whose_explanation_is_cut_off_is_still_a_no() -> None:
    def talk(wire: Wire) -> None:
        wire.hear()
        wire.say(b'HTTP/1.1 402 Pay\r\nContent-Length: 500\r\n\r\n{"error"')
        wire.reset()

    with RawServer(talk) as server:
        assert failure(server.url, submit).code == "credits_exhausted"


@pytest.mark.parametrize("call", REPEATABLE.values())
@pytest.mark.parametrize("status", [409, 410, 499])
def test_any_other_4xx_of_a_repeatable_call_is_a_no(call: Op, status: int) -> None:
    with RawServer(replying(status)) as server:
        error = failure(server.url, call)
    assert (type(error), error.code) == (Rejected, "request_rejected")


@pytest.mark.parametrize("call", REPEATABLE.values())
def test_a_redirect_is_not_followed(call: Op) -> None:
    with RawServer(replying(200, b"{}")) as trap, RawServer(replying(302, b"x" * 1000, Location=trap.url)) as server:
        error = failure(server.url, call)
    assert trap.connections == 0
    assert (type(error), error.code) == (Rejected, "redirected")


@pytest.mark.parametrize("call", [REPEATABLE["list"], REPEATABLE["presign_upload"], REPEATABLE["credits"]])
def test_a_404_to_what_names_no_finetune_is_about_the_address(call: Op) -> None:
    with RawServer(replying(404)) as server:
        error = failure(server.url, call)
    assert (type(error), error.code, error.status) == (Rejected, "wrong_address", 404)
    assert "SEGMIND_BASE_URL" in error.detail


# --- Later ---


@pytest.mark.parametrize("call", [submit, *REPEATABLE.values()])
def test_429_is_a_no_for_now(call: Op) -> None:
    with RawServer(replying(429, b'{"error": "slow down"}', Retry_After="17")) as server:
        error = failure(server.url, call)
    assert (type(error), error.code, error.retryable, error.retry_after) == (RateLimited, "rate_limited", True, 17.0)


SERVER_TIME = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", None),  # some say it in every 503
        ("1.5", 1.5),
        ("-3", None),
        ("999999", 3600),
        (format_datetime(SERVER_TIME + timedelta(seconds=20), usegmt=True), 20),
        (formatdate(0, usegmt=True), None),
        ("soon", None),
        ("nan", None),
        ("inf", 3600),
        ("", None),
    ],
)
def test_retry_after_in_seconds_or_as_a_date(text: str, seconds: float | None) -> None:
    """The server's clock is years ahead, as its own Date says."""
    with RawServer(replying(429, Retry_After=text, Date=format_datetime(SERVER_TIME, usegmt=True))) as server:
        assert failure(server.url, submit).retry_after == seconds


@pytest.mark.parametrize("call", REPEATABLE.values())
@pytest.mark.parametrize("status", [408, 425, 500, 502, 503, 504, 599])
def test_a_repeatable_call_meets_a_server_in_trouble(call: Op, status: int) -> None:
    with RawServer(replying(status, b"<html>Bad gateway</html>", Retry_After="5")) as server:
        error = failure(server.url, call)
    assert (type(error), error.code, error.retryable) == (Unavailable, "server_error", True)
    assert (error.retry_after, error.status) == (5.0, status)
    assert "html" not in error.detail


# --- A submit that is neither accepted nor refused ---

UNCLEAR = [103, 204, 301, 302, 303, 307, 308, 408, 409, 410, 418, 421, 425, 451, 499, 500, 502, 503, 504]


@pytest.mark.parametrize("status", UNCLEAR)
def test_any_status_that_is_not_a_clear_no_leaves_a_submit_unknown(status: int) -> None:
    with RawServer(replying(status, b"")) as server:
        error = failure(server.url, submit)
    assert (type(error), error.retryable) == (OutcomeUnknown, False)
    assert error.code in {"server_error", "unclear_status", "unreadable_reply"}


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"null", b"[]", b'{"status": "REQUESTED"}', b'{"finetune_id": ""}', b'{"finetune_id": null}',
     b'{"error": "try again"}', b'{"finetune_id": {"a": 1}}', b'{"finetune_id": "a"',
     b'{"finetune_id": "a"}' + b" " * 5_000_000, b"[" * 99_999],
    ids=lambda body: body[:20].decode(),
)  # fmt: skip
def test_an_unreadable_success_leaves_a_submit_unknown(body: bytes) -> None:
    with RawServer(replying(200, body)) as server:
        error = failure(server.url, submit)
    assert (type(error), error.code, error.status) == (OutcomeUnknown, "unreadable_reply", 200)


@pytest.mark.parametrize("status", [200, 201, 202])
@pytest.mark.parametrize("date", ["Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 99999999999999999999 08:49:37 GMT"])
def test_any_success_with_an_id_is_one(status: int, date: str) -> None:
    with (
        RawServer(replying(status, b'{"finetune_id": 77}', Date=date)) as server,
        SegmindClient(server.url, SecretStr(KEY)) as client,
    ):
        assert client.submit(REQUEST).finetune_id == "77"
