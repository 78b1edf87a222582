"""Whatever is sent, the gateway answers it: a client's error with a problem, a defect with its id, never a bare 500."""

import json
import math
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune_queue.errors import FineTuneQueueError
from gateway.serving import raw
from support.samples import sample

DEEP = b"[" * 50_000 + b"]" * 50_000


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"17",
        b'"text"',
        b"{",
        b"\xff\xfe",
        b'{"name": "\xc3\x28"}',
        DEEP,
        b'{"advance_parameters": ' + DEEP + b"}",
        b'{"a":' * 30_000 + b"1" + b"}" * 30_000,
        b'{"priority": ' + b"9" * 5000 + b"}",
        b'{"name": "\\ud800"}',
        b'{"\\ud800": 1}',
        b'{"labels": {"\\ud800": "x"}}',
        json.dumps(sample(advance_parameters={"odd": "\ud83d"})).encode(),
        json.dumps(sample(advance_parameters={"\ud83d": 1})).encode(),
        b"name=x&dataset=y",
    ],
    ids=lambda body: repr(body[:20]),
)
def test_a_body_that_is_no_request_is_a_client_s_error(http: httpx.Client, body: bytes) -> None:
    reply = http.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code in {400, 422}, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    json.loads(reply.text)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 400, '"\\u0000"', '"\\ud83d\\ude00"'])
def test_odd_values_of_parameters_are_kept_or_refused(http: httpx.Client, value: str) -> None:
    body = json.dumps(sample(advance_parameters={"odd": "VALUE"})).replace('"VALUE"', value)
    reply = http.post("/v1/jobs", content=body.encode(), headers={"Content-Type": "application/json"})
    finite = not isinstance(json.loads(value), float) or math.isfinite(json.loads(value))
    assert reply.status_code == (202 if finite else 422), reply.text
    if finite:
        again = http.get(reply.json()["links"]["self"])
        assert again.status_code == 200
        assert again.json()["request"]["advance_parameters"]["odd"] == json.loads(value)


@pytest.mark.parametrize(
    "kind", ["text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded", ""]
)
def test_a_body_of_another_kind_is_refused(http: httpx.Client, kind: str) -> None:
    # What a form on another site's page can send.
    reply = http.post("/v1/jobs", content=json.dumps(sample()).encode(), headers={"Content-Type": kind})
    assert reply.status_code in {415, 422}


@pytest.mark.parametrize(
    "line", ["GET /v1/jobs HTTP/9.9", "GET  HTTP/1.1", "\x00\x01\x02", "GET /v1/jobs HTTP/1.1\r\nHost"]
)
def test_what_is_no_http_is_answered_and_ends_the_connection(url: str, http: httpx.Client, line: str) -> None:
    reply = raw(url, f"{line}\r\n\r\n".encode(), wait=3)
    assert reply.startswith(b"HTTP/1.1 4")
    assert http.get("/livez").status_code == 200


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(list(sample())) | st.text(), inner),
        max_leaves=20,
    )
)
def test_any_json_is_answered_with_a_problem(http: httpx.Client, body: Any) -> None:
    content = json.dumps(body).encode()
    reply = http.post("/v1/jobs", content=content, headers={"Content-Type": "application/json"})
    assert reply.status_code in {400, 422}
    assert reply.json()["code"] in {"bad-request", "invalid-request"}


@pytest.mark.parametrize("kind", [RuntimeError, FineTuneQueueError])
def test_a_defect_is_told_by_its_id_alone(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: type[Exception]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise kind("a-secret-in-an-exception")

    monkeypatch.setattr("finetune_queue.sdk.FineTuneQueue.page", broken)
    reply = http.get("/v1/jobs")
    assert (reply.status_code, reply.json()["code"]) == (500, "internal-error")
    assert "a-secret" not in reply.text
    said = capsys.readouterr().out
    assert "request_crashed" in said
    assert reply.headers["x-request-id"] in said


def test_every_answer_has_its_headers(http: httpx.Client) -> None:
    for path in ("/v1/jobs", "/nothing", "/livez", "/", "/openapi.json"):
        headers = http.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "server" not in headers
        assert len(headers["x-request-id"]) == 36
    assert http.get("/v1/jobs").headers["cache-control"] == "no-store"
