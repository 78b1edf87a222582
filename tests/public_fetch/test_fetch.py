"""Asking for a file's size and downloading it, from a real server."""

import itertools
import socket
import ssl
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune_queue.public_fetch.addresses import AddressPolicy
from finetune_queue.public_fetch.errors import FetchError
from finetune_queue.public_fetch.fetch import fetch_to_file, probe
from support.names import Names
from support.tls import trusting
from support.web import Answer, Route, Web

POLICY = AddressPolicy(allow_loopback=True)
LIMIT = 1_000_000
BODY = b"PK\x03\x04" + bytes(range(252)) + bytes(range(256)) * 999
ZIP = {"Content-Type": "application/zip"}


def ask(web: Web, path: str = "/a.zip?X-Amz-Signature=hush") -> int:
    return probe(web.url(path), max_bytes=LIMIT, policy=POLICY)


def download(web: Web, target: Path, path: str = "/a.zip", seconds: float = 20) -> int:
    return fetch_to_file(web.url(path), target, max_bytes=LIMIT, policy=POLICY, seconds=seconds)


def test_a_file_that_the_provider_can_use(web: Web) -> None:
    web.routes["/a.zip"] = Answer(BODY, headers={**ZIP, "ETag": '"1"'})
    assert ask(web) == len(BODY)
    assert web.seen == [("HEAD", "/a.zip?X-Amz-Signature=hush"), ("GET", "/a.zip?X-Amz-Signature=hush")]


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Answer(BODY, methods=("GET",)), "no_head"),
        (Answer(BODY, status=501), "no_head"),
        (Answer(BODY, length=None), "no_length"),
        (Answer(BODY, length=None, headers={"Content-Length": "a lot"}), "no_length"),
        (Answer(BODY, length=None, headers={"Content-Length": "-5"}), "no_length"),
        (Answer(BODY, length=None, headers={"Content-Length": "9" * 5_000}), "no_length"),
        (Answer(BODY, headers={"Content-Encoding": "gzip"}), "no_length"),
        (Answer(b""), "not_a_file"),
        (Answer(BODY, headers={"Content-Type": "text/html; charset=utf-8"}), "not_a_file"),
        (Answer(BODY, length=LIMIT), "too_large"),
        (Answer(BODY, length=10**18), "too_large"),
        (Answer(status=401), "forbidden"),
        (Answer(status=403), "forbidden"),
        (Answer(status=404), "not_found"),
        (Answer(status=410), "not_found"),
        (Answer(status=400), "refused"),
        (Answer(status=204), "refused"),
        (Answer(status=429), "unavailable"),
        (Answer(status=503), "unavailable"),
        (Answer(status=302), "refused"),
    ],
)
def test_a_file_that_the_provider_cannot_use(web: Web, answer: Answer, code: str) -> None:
    web.routes["/a.zip"] = answer
    with pytest.raises(FetchError) as caught:
        ask(web)
    assert caught.value.code == code
    assert caught.value.retryable == (code == "unavailable")
    assert "hush" not in str(caught.value)
    assert caught.value.fix.endswith(".")


@pytest.mark.parametrize(
    ("by_get", "code"),
    [
        (Answer(status=403), "forbidden"),
        (Answer(status=404), "not_found"),
        (Answer(status=503), "unavailable"),
        (Answer(BODY[:-1]), "get_differs"),
        (Answer(BODY, length=None), "get_differs"),
        (Answer(BODY, headers={"Content-Type": "text/html"}), "not_a_file"),
        (Answer(b"<html>" + BODY[6:]), "not_a_file"),
        (Answer(b"P" + b"x" * (len(BODY) - 1)), "not_a_file"),
        (Answer(b"P", length=len(BODY)), "incomplete"),
    ],
)
def test_a_file_that_head_alone_would_let_pass(web: Web, by_get: Answer, code: str) -> None:
    """Such as a login page, or a link that is signed for HEAD only: its training would be paid for, and fail."""

    def route(handler: BaseHTTPRequestHandler) -> None:
        web.routes["/a.zip"] = by_get
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(BODY)))
        handler.end_headers()

    web.routes["/a.zip"] = route
    with pytest.raises(FetchError) as caught:
        ask(web)
    assert (caught.value.code, caught.value.retryable) == (code, code in {"unavailable", "incomplete"})
    assert "hush" not in str(caught.value)


def test_just_under_the_limit_only_the_first_bytes_are_read(web: Web) -> None:
    web.routes["/a.zip"] = Answer(BODY, length=LIMIT - 1)  # the body ends before
    assert ask(web) == LIMIT - 1


def test_a_download(web: Web, tmp_path: Path) -> None:
    web.routes["/a.zip"] = Answer(BODY, headers={**ZIP, "ETag": '"1"'})
    seen: list[tuple[int, int | None]] = []
    size = fetch_to_file(
        web.url("/a.zip"),
        tmp_path / "a.zip",
        max_bytes=LIMIT,
        policy=POLICY,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert size == len(BODY)
    assert (tmp_path / "a.zip").read_bytes() == BODY
    assert seen[-1] == (len(BODY), len(BODY))


def chunked(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    for start in range(0, len(BODY), 10_000):
        piece = BODY[start : start + 10_000]
        handler.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
    handler.wfile.write(b"0\r\n\r\n")


def test_a_download_without_a_length(web: Web, tmp_path: Path) -> None:
    web.routes["/chunked"] = chunked
    assert download(web, tmp_path / "a", "/chunked") == len(BODY)
    web.routes["/closed"] = Answer(BODY, length=None)
    assert download(web, tmp_path / "a", "/closed") == len(BODY)


def endless(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(BODY)


def test_a_download_without_end_is_stopped(web: Web, tmp_path: Path) -> None:
    web.routes["/endless"] = endless
    with pytest.raises(FetchError) as caught:
        download(web, tmp_path / "a", "/endless")
    assert caught.value.code == "too_large"
    assert not (tmp_path / "a").exists()


def slow(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b"x")
        handler.wfile.flush()
        time.sleep(0.02)


def test_a_download_that_trickles_is_stopped(web: Web, tmp_path: Path) -> None:
    web.routes["/slow"] = slow
    started = time.monotonic()
    with pytest.raises(FetchError) as caught:
        download(web, tmp_path / "a", "/slow", seconds=0.3)
    assert caught.value.code == "timed_out"
    assert time.monotonic() - started < 20
    assert not (tmp_path / "a").exists()


def silent(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"x")
    handler.wfile.flush()
    handler.connection.recv(1)


def test_a_download_that_stalls_is_stopped(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_queue.public_fetch.guard.READ_SECONDS", 0.2)
    web.routes["/silent"] = silent
    with pytest.raises(FetchError, match="stopped sending") as caught:
        download(web, tmp_path / "a", "/silent")
    assert caught.value.code == "timed_out"
    assert caught.value.retryable


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, len(BODY) - 1), reset=st.booleans())
def test_a_download_cut_anywhere_leaves_nothing(web: Web, tmp_path: Path, cut: int, *, reset: bool) -> None:
    def cutting(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(BODY)))
        handler.end_headers()
        handler.wfile.write(BODY[:cut])
        if reset:
            # With a zero linger time, closing sends a reset.
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            handler.connection.close()
        handler.close_connection = True

    web.routes["/cut"] = cutting
    with pytest.raises(FetchError) as caught:
        download(web, tmp_path / "a", "/cut")
    assert caught.value.code in ("incomplete", "unreachable")
    assert caught.value.retryable
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("route", "code"),
    [
        (Answer(status=404), "not_found"),
        (Answer(BODY, length=2 * LIMIT), "too_large"),
        (Answer(b"<html>", headers={"Content-Type": "text/html"}), "not_a_file"),
        (lambda handler: handler.wfile.write(b"nonsense\r\n\r\n"), "unreachable"),
        (lambda handler: handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n"), "unreachable"),
    ],
)
def test_a_download_that_is_refused(web: Web, tmp_path: Path, route: Route, code: str) -> None:
    web.routes["/a.zip"] = route
    with pytest.raises(FetchError) as caught:
        download(web, tmp_path / "a")
    assert caught.value.code == code
    assert not (tmp_path / "a").exists()


def test_a_place_that_cannot_be_written_is_no_fault_of_the_url(web: Web, tmp_path: Path) -> None:
    web.routes["/a.zip"] = Answer(BODY)
    with pytest.raises(FileNotFoundError):
        download(web, tmp_path / "no" / "a")


def test_over_tls_the_name_is_still_the_name(tmp_path: Path, names: Names, tls: tuple[ssl.SSLContext, Path]) -> None:
    names.answers["files.test"] = names.answers["other.test"] = [["127.0.0.1"]]
    server, authority = tls
    with Web({"/a.zip": Answer(BODY)}, tls=server) as web:
        urls = {name: f"https://{name}:{web.port}/a.zip" for name in ("files.test", "other.test")}
        with pytest.raises(FetchError) as caught:
            probe(urls["files.test"], max_bytes=LIMIT, policy=POLICY)
        assert caught.value.code == "tls_failed"
        with trusting(authority):
            assert probe(urls["files.test"], max_bytes=LIMIT, policy=POLICY) == len(BODY)
            authority.unlink()  # read once in a process
            assert fetch_to_file(urls["files.test"], tmp_path / "a", max_bytes=LIMIT, policy=POLICY) == len(BODY)
            assert web.headers[-1]["Host"] == f"files.test:{web.port}"
            trusted = AddressPolicy(trusted_origins=frozenset(f"https://{name}:{web.port}" for name in urls))
            assert probe(urls["files.test"], max_bytes=LIMIT, policy=trusted) == len(BODY)
            for policy in (POLICY, trusted):
                with pytest.raises(FetchError) as caught:
                    probe(urls["other.test"], max_bytes=LIMIT, policy=policy)
                assert caught.value.code == "tls_failed"


def test_a_handshake_that_never_ends(trap_port: int) -> None:
    started = time.monotonic()
    with pytest.raises(FetchError) as caught:
        probe(f"https://127.0.0.1:{trap_port}/", max_bytes=LIMIT, policy=POLICY, seconds=0.3)
    assert caught.value.code == "timed_out"
    assert time.monotonic() - started < 20


def test_progress_never_goes_back(web: Web, tmp_path: Path) -> None:
    web.routes["/chunked"] = chunked
    seen: list[int] = []
    fetch_to_file(
        web.url("/chunked"),
        tmp_path / "a",
        max_bytes=LIMIT,
        policy=POLICY,
        on_progress=lambda done, _total: seen.append(done),
    )
    assert len(seen) > 1
    assert all(before < after for before, after in itertools.pairwise(seen))
