"""What is true of every request: who may come in, what may be asked, how much and how fast."""

import socket
import time
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import redis

from finetune_queue.contract import JobState, new_job_id
from finetune_queue.datasets.limits import MAX_ARCHIVE_BYTES
from finetune_queue.gateway import edge, server
from finetune_queue.gateway.clients import new_token, token_hash
from finetune_queue.gateway.server import GatewayServer
from finetune_queue.sdk import FineTuneQueue
from finetune_queue.settings import SettingsError
from gateway.serving import AUTH, TOKEN, MakeSettings, Start, raw, reply_on
from support.samples import sample

# who


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer wrong",
        f"Basic {TOKEN}",
        f"Bearer {TOKEN[:-1]}",
        "Bearer \xe9",
        f"Bearer {token_hash(TOKEN)}",
    ],
)
@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/overview", "/v1/stream", "/metrics"])
def test_without_a_known_token_nothing_is_shown(url: str, path: str, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    reply = httpx.get(url + path, headers=headers, trust_env=False)  # type: ignore[arg-type]
    assert (reply.status_code, reply.json()["code"]) == (401, "unauthorized")
    assert reply.headers["www-authenticate"].startswith("Bearer")
    assert TOKEN not in reply.text


def test_each_client_has_a_token_of_its_own_and_a_removed_one_is_refused(
    make_settings: MakeSettings, start: Start
) -> None:
    first, second = new_token(), new_token()
    url = start(make_settings(finetune_gateway_tokens={"a": token_hash(first), "b": token_hash(second)}))
    for token, status in ((first, 200), (second, 200), (TOKEN, 401)):
        reply = httpx.get(f"{url}/v1/jobs", headers={"Authorization": f"Bearer {token}"}, trust_env=False)
        assert reply.status_code == status


def test_a_client_that_may_only_read_changes_nothing_and_pays_for_nothing(
    make_settings: MakeSettings, start: Start, queue: FineTuneQueue
) -> None:
    job = queue.submit(sample())
    token = "ftq_scraper"
    tokens = {"prometheus": token_hash(token), "tests": token_hash(TOKEN)}
    url = start(make_settings(finetune_gateway_tokens=tokens, finetune_gateway_readers=("prometheus",)))
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, trust_env=False) as http:
        for path in ("/metrics", "/v1/load", f"/v1/jobs/{job.id}"):
            assert http.get(path).status_code == 200, path
        for path in ("/v1/jobs", f"/v1/jobs/{job.id}/cancel", "/v1/datasets"):
            reply = http.post(path, json=sample())
            assert (reply.status_code, reply.json()["code"]) == (403, "read-only"), path
        assert http.post("/v1/jobs", json=sample(), headers=AUTH).status_code == 202
    assert job.refresh().state is JobState.ACCEPTED
    assert len(list(queue.list())) == 2


def test_a_misspelt_name_does_not_leave_its_client_all_rights(make_settings: MakeSettings) -> None:
    with pytest.raises(SettingsError, match="FINETUNE_GATEWAY_READERS: there is no token for promethius"):
        GatewayServer(make_settings(finetune_gateway_readers=("promethius",)), "127.0.0.1", 0)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "gateway.example.com"])
def test_without_tokens_it_listens_on_loopback_addresses_only(make_settings: MakeSettings, host: str) -> None:
    with pytest.raises(SettingsError, match="FINETUNE_GATEWAY_TOKENS: missing"):
        GatewayServer(make_settings(finetune_gateway_tokens={}), host, 0)


@pytest.fixture
def open_url(make_settings: MakeSettings, start: Start) -> str:
    return start(make_settings(finetune_gateway_tokens={}))


def test_answers_do_not_wait_for_acknowledgements(make_settings: MakeSettings) -> None:
    with GatewayServer(make_settings(), "127.0.0.1", 0).socket as listening:
        assert listening.proto == socket.IPPROTO_TCP  # or asyncio would not set TCP_NODELAY on what it accepts


def test_a_kept_connection_is_not_closed_before_who_keeps_it_does(make_settings: MakeSettings) -> None:
    found = GatewayServer(make_settings(), "127.0.0.1", 0)
    with found.socket:
        assert found.config.timeout_keep_alive > 90  # Go's; nginx and load balancers have 60


def test_without_tokens_this_machine_may_use_it(open_url: str) -> None:
    assert httpx.post(f"{open_url}/v1/jobs", json=sample(), trust_env=False).status_code == 202


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[", "10.0.0.1", "localhost.evil"])
def test_without_tokens_a_name_that_leads_here_is_refused(open_url: str, host: str) -> None:
    reply = httpx.get(f"{open_url}/v1/jobs", headers={"Host": host}, trust_env=False)
    assert (reply.status_code, reply.json()["code"]) == (403, "foreign-origin")


def test_without_tokens_another_site_s_page_is_refused(open_url: str) -> None:
    job = httpx.post(f"{open_url}/v1/jobs", json=sample(), trust_env=False).json()
    for origin, status in (("https://evil.example", 403), ("null", 403), ("http://[", 403), (open_url, 200)):
        reply = httpx.post(open_url + job["links"]["cancel"], headers={"Origin": origin}, trust_env=False)
        assert reply.status_code == status, origin


# what is asked


def test_no_call_takes_a_parameter_that_it_does_not_have(http: httpx.Client, client: redis.Redis) -> None:
    """`?dry_run=1` submitted a job that is paid for."""
    calls = [
        (method.upper(), path.format(job_id=new_job_id()))
        for path, item in http.get("/openapi.json").json()["paths"].items()
        if path.startswith("/v1/")
        for method in item
    ]
    assert len(calls) >= 13
    for method, path in calls:
        reply = http.request(method, f"{path}?dry_run=1&dry", json=sample() if method == "POST" else None)
        assert (reply.status_code, reply.json().get("code")) == (422, "invalid-request"), (method, path)
        found = {(error["where"], error["detail"]) for error in reply.json()["errors"]}
        assert found == {("dry_run", "is unknown"), ("dry", "is unknown")}, (method, path)
    assert client.keys("*") == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/job", 404), ("DELETE", "/v1/jobs/0197f0a2-7a3c-7c41-9d5e-3b7f6a1c2e90", 405)],
)
def test_a_call_that_there_is_not_is_told_where_the_others_are(
    http: httpx.Client, method: str, path: str, status: int
) -> None:
    reply = http.request(method, path)
    assert reply.status_code == status
    assert "/openapi.json" in reply.json()["detail"]


def test_a_place_to_go_on_from_is_asked_for_in_words(http: httpx.Client) -> None:
    assert http.get("/v1/events?after=x").json()["detail"] == "after: should be `next` of the previous page"
    reply = http.get("/v1/stream", headers={"Last-Event-ID": "x"})
    assert reply.json()["detail"] == "last-event-id: should be the id of the last event that came"


def test_the_api_s_own_name_of_the_dataset_is_told_from_a_typo(http: httpx.Client) -> None:
    said = http.post("/v1/jobs", json=sample(data_source_path="https://example.com/x.zip")).json()["detail"]
    assert said == "/data_source_path: is called 'dataset' here"


# how much


def test_a_client_that_sends_too_much_is_told_when_to_come_back(make_settings: MakeSettings, start: Start) -> None:
    other = new_token()
    tokens = {"tests": token_hash(TOKEN), "other": token_hash(other)}
    url = start(make_settings(finetune_gateway_rate_limit="3/60", finetune_gateway_tokens=tokens))
    with httpx.Client(base_url=url, headers=AUTH, trust_env=False) as http:
        replies = [http.get("/v1/jobs") for _ in range(5)]
        assert [reply.status_code for reply in replies] == [200, 200, 200, 429, 429]
        assert replies[3].json()["code"] == "rate-limited"
        assert 1 <= int(replies[3].headers["retry-after"]) <= 20
        assert http.get("/v1/jobs", headers={"Authorization": f"Bearer {other}"}).status_code == 200
        assert http.get("/livez").status_code == 200


@pytest.mark.parametrize(
    ("path", "kind", "size"),
    [("jobs", "json", 999_999_999_999), ("datasets", "zip", MAX_ARCHIVE_BYTES)],  # a dataset has to be under its limit
)
def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_sent(
    url: str, monkeypatch: pytest.MonkeyPatch, path: str, kind: str, size: int
) -> None:
    monkeypatch.setattr(edge, "IDLE_SECONDS", 0.2)
    head = f"POST /v1/{path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
    reply = raw(url, f"{head}Content-Type: application/{kind}\r\nContent-Length: {size}\r\n\r\n".encode())
    assert reply.startswith(b"HTTP/1.1 413 ")
    assert b'"too-large"' in reply


def test_a_body_that_does_not_say_so_is_cut_off(http: httpx.Client) -> None:
    def chunks() -> Any:
        yield b'{"name": "'
        for _ in range(100):
            yield b"x" * 65536

    try:
        reply = http.post("/v1/jobs", content=chunks(), headers={"Content-Type": "application/json"})
    except httpx.WriteError:
        return  # the server had closed already
    assert (reply.status_code, reply.json()["code"]) == (413, "too-large")


def test_a_body_that_does_not_come_is_not_waited_for(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge, "IDLE_SECONDS", 0.2)
    head = f"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n"
    started = time.monotonic()
    reply = raw(url, f'{head}Content-Length: 100\r\n\r\n{{"name'.encode())
    assert reply.startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - started < 15


def trickle(connection: socket.socket, byte: bytes, *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        connection.sendall(byte)
        time.sleep(0.02)


@pytest.mark.parametrize("first", ["", "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"], ids=["new", "kept"])
def test_a_request_that_does_not_come_holds_no_connection(
    url: str, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.5)
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as connection:
        if first:
            connection.sendall(first.encode())
            assert reply_on(connection).endswith(b"}")
        connection.sendall(b"GET /li")
        with pytest.raises(ConnectionError):  # it is closed
            trickle(connection, b"v", seconds=10)  # which ends no wait


def test_the_rest_of_a_refused_request_does_not_close_its_connection(
    make_settings: MakeSettings, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(server, "KEPT", 2)
    parts = urlsplit(start(make_settings()))
    with socket.create_connection((parts.hostname, parts.port)) as connection:
        for _ in range(2):
            connection.settimeout(10)
            connection.sendall(b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n")
            assert reply_on(connection).endswith(b"}")
            connection.sendall(b"{}")
            connection.settimeout(0.8)
            with pytest.raises(TimeoutError):  # open, and silent for longer than a head may take
                connection.recv(65536)
        connection.settimeout(10)
        assert connection.recv(65536) == b""  # after two seconds, as any other


def test_a_stream_outlives_the_wait_for_its_request(
    url: str, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 1.0)
    with http.stream("GET", f"{url}/v1/stream") as reply:
        lines = reply.iter_lines()
        assert next(lines) == "retry: 2000"
        time.sleep(1.2)  # longer than a head may take: nothing tells of an end that does not come
        http.post(f"{url}/v1/jobs", json=sample())
        assert any(line.startswith("data: ") for line in lines)


def test_strangers_with_slow_bodies_keep_nobody_out(
    url: str, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge, "MAX_RUNNING", 3)
    head = b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    parts = urlsplit(url)
    with ExitStack() as opened:
        for _ in range(5):
            slow = opened.enter_context(socket.create_connection((parts.hostname, parts.port), timeout=30))
            slow.sendall(head)
            assert slow.recv(65536).startswith(b"HTTP/1.1 401 ")
        assert http.get("/v1/jobs").status_code == 200


def test_too_many_at_once_are_told_to_come_back(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge, "MAX_RUNNING", 0)
    reply = http.get("/v1/jobs")
    assert (reply.status_code, reply.json()["code"], reply.headers["retry-after"]) == (503, "busy", "1")
    assert http.get("/livez").status_code == 200
