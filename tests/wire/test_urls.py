"""What of a URL may be shown, and what may be called."""

import logging

import pytest
import requests

from finetune_worker.wire.session import open_session
from finetune_worker.wire.urls import UnsafeUrlError, require_callable, safe_url, without_queries
from wire.rawserver import RawServer, Wire, answering


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://b.example/a/b.zip?X-Amz-Signature=feed#part", "https://b.example/a/b.zip"),
        ("https://user:feed@b.example:8443/a", "https://b.example:8443/a"),
        ("/a/b?c=feed", "/a/b"),
        ("https://[feed/", "(unreadable URL)"),
        ("", ""),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert safe_url(url) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("see https://b.example/x?sig=feed, or wait", "see https://b.example/x?... or wait"),
        ("HTTPS://u:feed@B.example/x failed", "HTTPS://B.example/x failed"),
        ("'https://b.example/x#feed'", "'https://b.example/x?...'"),
        (
            "PUT /x?X-Amz-Credential=feed&X-Amz-Signature=feed&n=1",
            "PUT /x?X-Amz-Credential=...&X-Amz-Signature=...&n=1",
        ),
        ("no URL", "no URL"),
    ],
)
def test_a_text_is_shown_without_the_secrets_of_its_urls(text: str, shown: str) -> None:
    assert without_queries(text) == shown


@pytest.mark.parametrize("url", ["https://b.example/x", "https://b.example:8443", "HTTPS://b.example"])
def test_https_may_be_called(url: str) -> None:
    require_callable(url, allow_loopback=False)


@pytest.mark.parametrize(
    "url",
    ["http://b.example", "b.example", "", "https://", "https:///x", "https://u@b.example", "https://b.example:0",
     "https://b.example:99999", "https://[::1", "ftp://b.example", "http://localhost.b.example", "//b.example"],
)  # fmt: skip
def test_anything_else_may_not(url: str) -> None:
    with pytest.raises(UnsafeUrlError):
        require_callable(url, allow_loopback=True)


def test_urllib3s_own_log_lines_hold_no_query(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.DEBUG),
        RawServer(answering(lambda wire, heard: wire.reply(200))) as server,
        open_session() as session,
    ):
        session.get(f"{server.url}/x?X-Amz-Signature=feed&b=1", timeout=5)
    assert "GET /x " in caplog.text
    assert "feed" not in caplog.text


def test_nothing_from_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would see the datasets, and a netrc file would send its password to the storage."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")

    def answer(wire: Wire, heard: object) -> None:
        wire.reply(200, b"direct")

    with RawServer(answering(answer)) as server, open_session() as session:
        reply: requests.Response = session.get(server.url, timeout=5)
        assert reply.content == b"direct"
