"""Submit, read, list, cancel and retry over HTTP."""

import gzip
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from finetune_queue.contract import JobError, JobState, Stage, derived_job_id, new_job_id
from finetune_queue.errors import InvalidRequestError
from finetune_queue.messaging import QUEUE
from finetune_queue.sdk import FineTuneQueue
from finetune_queue.store import Accounts, Change, JobStore, keys
from support.http_api import problem, submit
from support.samples import sample, sample_request


def test_a_submitted_job_is_accepted_and_says_where_to_go_on(http: httpx.Client, queue: FineTuneQueue) -> None:
    reply = http.post("/v1/jobs", json=sample(labels={"team": "faces"}, priority=7))
    assert reply.status_code == 202
    body = reply.json()
    assert reply.headers["location"] == f"/v1/jobs/{body['job_id']}" == body["links"]["self"]
    job = queue.get(body["job_id"])
    assert (job.state, job.record.request.labels, job.record.request.priority) == ("accepted", {"team": "faces"}, 7)
    assert queue._submitter._messages().lengths()[QUEUE] == 1
    for name in ("self", "events"):
        assert http.get(body["links"][name]).status_code == 200
    assert http.post(body["links"]["retry"]).status_code == 409
    assert http.post(body["links"]["cancel"]).json()["state"] == "cancelled"


@pytest.mark.parametrize("header", ["order-1", '"order-1"'])
def test_an_idempotency_key_gives_the_same_job_as_in_the_sdk(
    http: httpx.Client, queue: FineTuneQueue, header: str
) -> None:
    first = http.post("/v1/jobs", json=sample(), headers={"Idempotency-Key": header})
    again = http.post("/v1/jobs", json=sample(), headers={"Idempotency-Key": header})
    assert (first.status_code, again.status_code) == (202, 202)
    assert (first.json()["new"], again.json()["new"]) == (True, False)
    assert "new" not in http.get(first.json()["links"]["self"]).json()
    assert first.json()["job_id"] == again.json()["job_id"] == derived_job_id("default", "order-1")
    found, made = queue.submit(sample(), idempotency_key="order-1"), queue.submit(sample())
    assert (found.id, found.new, made.new) == (first.json()["job_id"], False, True)
    assert submit(http, idempotency_key="order-1")["job_id"] == first.json()["job_id"]
    other = http.post("/v1/jobs", json=sample(trigger_word="2MAN"), headers={"Idempotency-Key": header})
    problem(other, 409, "idempotency-conflict")


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"", "should not be empty"),
        (b"k" * 256, "should have at most 255 characters"),
        (b"k\xe9", "should be ASCII characters, 255 at most, without a space at either end"),
    ],
)
def test_a_key_that_none_can_be_is_said_once(http: httpx.Client, header: bytes, said: str) -> None:
    found = problem(http.post("/v1/jobs", json=sample(), headers={b"Idempotency-Key": header}), 422, "invalid-request")
    assert found["errors"] == [{"where": "idempotency-key", "detail": said}]


def test_a_quoted_key_may_be_no_emptier_than_a_plain_one(http: httpx.Client) -> None:
    """It would be the key of all that comes from a client that forgot to fill it in."""
    found = problem(http.post("/v1/jobs", json=sample(), headers={"Idempotency-Key": '""'}), 422, "invalid-request")
    assert found["detail"] == "/idempotency_key: should not be empty"


@pytest.mark.parametrize(
    ("query", "where", "said"),
    [
        ({"label": "_x=1"}, "label.0", "should be KEY=VALUE, the key of letters, digits and . _ / -, beginning"),
        ({"cursor": "x"}, "cursor", "should be `next` of the previous page"),
        ({"account": "a b"}, "account", "should be letters, digits"),
    ],
)
def test_a_form_is_told_without_its_pattern(http: httpx.Client, query: dict[str, str], where: str, said: str) -> None:
    found = problem(http.get("/v1/jobs", params=query), 422, "invalid-request")
    [only] = found["errors"]
    assert only["where"] == where
    assert only["detail"].startswith(said)


def test_two_keys_that_differ_are_refused(http: httpx.Client, client: redis.Redis) -> None:
    """By a code of its own: neither was used with another request."""
    reply = http.post("/v1/jobs", json=sample(idempotency_key="a"), headers={"Idempotency-Key": "b"})
    assert "different idempotency keys" in problem(reply, 422, "idempotency-keys-differ")["title"]
    assert client.keys("*") == []


def test_two_headers_with_different_keys_are_refused(http: httpx.Client, client: redis.Redis) -> None:
    def post(*keys: str) -> httpx.Response:
        return http.post("/v1/jobs", json=sample(), headers=[("Idempotency-Key", key) for key in keys])

    said = {"where": "idempotency-key", "detail": "is given more than once, with different keys"}
    assert problem(post("a", "b"), 422, "invalid-request")["errors"] == [said]
    assert client.keys("*") == []
    assert post("a", '"a"').json()["job_id"] == derived_job_id("default", "a")


def test_a_member_that_is_there_twice_is_named(http: httpx.Client, client: redis.Redis) -> None:
    twice = json.dumps(sample(priority=1)).replace('"priority": 1', '"priority": 1, "priority": 9')
    for path, body, name in (
        ("/v1/jobs", twice, "priority"),
        ("/v1/jobs", json.dumps(sample(labels={"a": "1"})).replace('"a": "1"', '"a": "1", "a": "2"'), "a"),
        (f"/v1/jobs/{new_job_id()}/access", '{"public": false, "public": true}', "public"),
    ):
        reply = http.post(path, content=body, headers={"Content-Type": "application/json"})
        assert problem(reply, 400, "bad-request")["detail"] == f'The body has the member "{name}" more than once.'
    assert client.keys("*") == []


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"name": ""}, "/name"),
        ({"trigger_word": None}, "/trigger_word"),
        ({"data_source_path": "https://example.com/a.zip"}, "/data_source_path"),
        ({"dataset": "/etc/passwd"}, "/dataset"),
        ({"dataset": "images/faces"}, "/dataset"),
        ({"dataset": "http://F[>^"}, "/dataset"),
        ({"dataset": "https://example.com/my good.zip"}, "/dataset"),
        ({"dataset": "s3://data/my\ngood.zip"}, "/dataset"),
        ({"dataset": "https://me:hidden-pw@example.com/a.zip"}, "/dataset"),
        ({"priority": 10}, "/priority"),
        ({"name": "my\x01face"}, "/name"),
        ({"labels": {"a b": "c"}}, "/labels"),
        ({"advance_parameters": {"steps": 0}}, "/advance_parameters"),
        ({"reply_to": ["nonsense"]}, "/reply_to/0"),
        ({"deadline": "2030-01-01T00:00:00"}, "/deadline"),
    ],
)
def test_each_wrong_field_is_named(http: httpx.Client, fields: dict[str, Any], where: str) -> None:
    body = problem(http.post("/v1/jobs", json=sample(**fields)), 422, "invalid-request")
    assert [error["where"] for error in body["errors"]] == [where]
    assert where in body["detail"]
    assert "/etc/passwd" not in body["detail"]
    assert "hidden-pw" not in str(body)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"labels": {"a b": "c"}}, "a key should be letters, digits and . _ / -, beginning with a letter or digit"),
        ({"labels": {str(number): "x" for number in range(100)}}, "should have at most 32 entries"),
        ({"reply_to": ["list://x"] * 9}, "should have at most 8 entries"),
        ({"deadline": "soon"}, "should be a time with a time zone, like 2026-01-31T18:00:00Z"),
        ({"deadline": "2030-01-01T00:00:00"}, "should be a time with a time zone, like 2026-01-31T18:00:00Z"),
        ({"deadline": 5}, "should be a time with a time zone, like 2026-01-31T18:00:00Z"),
    ],
)
def test_what_is_wrong_is_said_as_everywhere(http: httpx.Client, fields: dict[str, Any], said: str) -> None:
    [error] = problem(http.post("/v1/jobs", json=sample(**fields)), 422, "invalid-request")["errors"]
    assert error["detail"].startswith(said)


NOWHERE = {
    "https:///a.zip": "should name a host",
    "s3:///x": "should name a bucket",
    "s3://bucket": "is a bucket, not a file in it",
    "gs://bucket//": "is a bucket, not a file in it",
    "file://otherhost/x": "a worker reads the files of its own machine",
}
"""What a job could only fail by, and why."""


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        *NOWHERE.items(),
        ("https://bücher.example/a.zip", "host name in ASCII"),
        ("https://[2606:4700::1111]/a.zip", "IPv6 addresses are not accepted"),
        ("https://me:pw@example.com/a.zip", "should hold no user name or password"),
        ("images/faces", "should be a URL: https://example.com/"),
    ],
)
def test_a_dataset_that_is_nowhere_is_refused_with_the_reason(http: httpx.Client, dataset: str, said: str) -> None:
    body = problem(http.post("/v1/jobs", json=sample(dataset=dataset)), 422, "invalid-request")
    [error] = body["errors"]
    assert error["where"] == "/dataset"
    assert said in error["detail"]


@pytest.mark.parametrize("dataset", NOWHERE)
def test_the_sdk_refuses_a_dataset_that_is_nowhere_and_a_stored_one_is_read(queue: FineTuneQueue, dataset: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"dataset: .*{NOWHERE[dataset]}"):
        queue.submit(sample(dataset=dataset))
    [submission] = queue.submit_many([sample(dataset=dataset)])
    assert isinstance(submission.error, InvalidRequestError)
    record, _ = queue._jobs.register(new_job_id(), sample_request(dataset=dataset), delay=1)
    assert queue.get(record.id).record.request.dataset == dataset


def test_the_case_of_a_scheme_and_a_host_does_not_count(http: httpx.Client) -> None:
    assert submit(http, dataset="HTTPS://EXAMPLE.COM/A.zip")["request"]["dataset"] == "https://example.com/A.zip"


@pytest.mark.parametrize("key", ["my good.zip", "schön/日本.zip", "a%20b+c?d#e[1].zip"])
def test_the_key_of_an_object_is_taken_as_it_is(http: httpx.Client, queue: FineTuneQueue, key: str) -> None:
    job = queue.get(submit(http, dataset=f"s3://data/{key}")["job_id"])
    assert job.record.request.dataset == f"s3://data/{key}"


def test_a_deadline_that_has_passed_is_refused(http: httpx.Client, client: redis.Redis) -> None:
    reply = http.post("/v1/jobs", json=sample(deadline="2026-01-31T18:00:00Z"))
    found = problem(reply, 422, "invalid-request")
    assert found["errors"] == [{"where": "/deadline", "detail": "2026-01-31T18:00:00+00:00 has already passed"}]
    assert found["detail"] == "/deadline: 2026-01-31T18:00:00+00:00 has already passed"
    assert client.keys("*") == []


def test_a_body_that_is_no_object_says_what_is_wanted(http: httpx.Client) -> None:
    assert problem(http.post("/v1/jobs", json=[1]), 422, "invalid-request")["detail"] == "/: should be a JSON object"


@pytest.mark.parametrize("kind", [None, "application/x-www-form-urlencoded", "text/plain"])
def test_json_that_is_not_said_to_be_json_is_told_of_by_its_header(http: httpx.Client, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    for path in ("/v1/jobs", f"/v1/jobs/{new_job_id()}/access"):
        reply = http.post(path, content=json.dumps(sample()), headers=headers)
        assert "Content-Type: application/json" in problem(reply, 415, "unsupported-media-type")["detail"]


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("body", "status", "code", "said"),
    [
        (b"", 422, "invalid-request", "/: should be a JSON object, but is empty"),
        (b"null", 422, "invalid-request", "/: should be a JSON object"),
        (b'{"name": "caf\xe9"}', 400, "bad-request", "The body is not UTF-8 text."),
        (b'{"labels": ' + b"[" * 100_000, 400, "bad-request", "The body is nested too deeply."),
        (b'{"priority": ' + b"9" * 5000 + b"}", 400, "bad-request", "A number in the body has too many digits."),
        (b'{"name": ', 400, "bad-request", "The body is not JSON: Expecting value."),
    ],
)
def test_a_body_that_cannot_be_read_says_why(
    http: httpx.Client, body: bytes, status: int, code: str, said: str
) -> None:
    for path in ("/v1/jobs", f"/v1/jobs/{new_job_id()}/access"):
        assert problem(http.post(path, content=body, headers=JSON), status, code)["detail"] == said
    assert problem(http.post("/v1/jobs"), 422, "invalid-request")["detail"].endswith("is empty")


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "br", "gzip, identity"])
def test_a_packed_body_is_told_of_by_its_header(http: httpx.Client, coding: str) -> None:
    body = json.dumps(sample()).encode()
    headers = {**JSON, "Content-Encoding": coding}
    for path in ("/v1/jobs", f"/v1/jobs/{new_job_id()}/access"):
        reply = http.post(path, content=gzip.compress(body), headers=headers)
        assert "Content-Encoding" in problem(reply, 415, "unsupported-media-type")["detail"]
        assert reply.headers["accept-encoding"] == "identity"
    reply = http.post("/v1/datasets", content=b"PK", headers={**headers, "Content-Type": "application/zip"})
    assert "Content-Encoding" in problem(reply, 415, "unsupported-media-type")["detail"]
    assert http.post("/v1/jobs", content=body, headers={**JSON, "Content-Encoding": "Identity"}).status_code == 202


def test_a_local_path_reaches_no_file_of_the_gateway(http: httpx.Client, staging: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.zip").write_bytes(b"x")
    problem(http.post("/v1/jobs", json=sample(dataset=str(tmp_path / "secret.zip"))), 422, "invalid-request")
    assert not staging.exists()


def test_a_job_says_why_it_waits(
    http: httpx.Client, queue: FineTuneQueue, account: Accounts, client: redis.Redis
) -> None:
    job = queue.get(submit(http)["job_id"])
    store: JobStore = queue._jobs
    change = Change(delay=60, room_score=1.0)
    store.transition(job.record, change, to=JobState.UPLOADING, waiting_for="api-slot")
    body = http.get(f"/v1/jobs/{job.id}").json()
    assert body["waiting"] == {
        "reason": "api-slot",
        "ahead": 0,
        "estimate_seconds": 0.0,
        "submits_stopped": False,
        "unserved": False,
        "no_worker": True,
    }
    reason = "Segmind does not know the key."
    until = str(int((time.time() + 300) * 1000))
    client.hset(keys.account("default"), mapping={"paused_until": until, "pause_reason": reason})
    waiting = http.get(f"/v1/jobs/{job.id}").json()["waiting"]
    assert (waiting["reason"], waiting["pause_reason"]) == ("paused", reason)


@pytest.mark.parametrize(
    "job_id", ["01990000-0000-7000-8000-000000000000", "nonsense", "%00", "..%2f..", "{finetune}:jobs", "é" * 300]
)
@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("GET", "/events"), ("GET", "/stream"), ("POST", "/cancel")])
def test_a_job_that_is_not_there(http: httpx.Client, job_id: str, method: str, path: str) -> None:
    reply = http.request(method, f"/v1/jobs/{job_id}{path}")
    assert reply.json()["code"] in {"job-not-found", "not-found"}
    assert reply.status_code == 404


def test_an_id_is_known_in_capitals_and_with_blanks_and_what_is_none_is_told_so(http: httpx.Client) -> None:
    job_id = submit(http)["job_id"]
    for typed in (job_id.upper(), f"%20{job_id}%20"):
        assert http.get(f"/v1/jobs/{typed}").json()["job_id"] == job_id
        assert len(http.get(f"/v1/jobs/{typed}/events").json()["events"]) == 1
    said = problem(http.get(f"/v1/jobs/{job_id[:8]}"), 404, "job-not-found")["detail"]
    assert said.startswith(f"'{job_id[:8]}' is not a complete job id; one looks like ")
    assert http.post(f"/v1/jobs/{job_id.upper()}/cancel").json()["state"] == "cancelled"


def test_a_model_is_made_public_once_its_job_has_ended(http: httpx.Client, queue: FineTuneQueue) -> None:
    job = queue.get(submit(http)["job_id"])
    link = http.get(f"/v1/jobs/{job.id}").json()["links"]["access"]
    assert "no training" in problem(http.post(link, json={"public": True}), 409, "not-possible")["detail"]
    store: JobStore = queue._jobs
    store.transition(
        store.transition(job.record, Change(delay=60), finetune_id="ft-1"), Change(), to=JobState.CANCELLED
    )

    reply = http.post(link, json={"public": True})

    assert (reply.status_code, reply.json()["access"]) == (202, {"wanted": "public", "attempts": 0})
    assert http.get(link.removesuffix("/access")).json()["access"]["wanted"] == "public"
    [*_, event] = http.get(f"/v1/jobs/{job.id}/events").json()["events"]
    assert (event["type"], event["data"]["access"]["wanted"]) == ("io.finetunequeue.job.access.v1", "public")
    for wrong in ({}, {"public": "yes"}, {"public": 1}, {"public": True, "why": "x"}):
        problem(http.post(link, json=wrong), 422, "invalid-request")
    problem(
        http.post(link.replace(job.id, "01990000-0000-7000-8000-000000000000"), json={"public": True}),
        404,
        "job-not-found",
    )


def test_a_failed_job_is_retried_at_its_stage(http: httpx.Client, queue: FineTuneQueue) -> None:
    job = queue.get(submit(http)["job_id"]).record
    store: JobStore = queue._jobs
    job = store.transition(job, Change(delay=60), to=JobState.UPLOADING)
    error = JobError(code="dataset_rejected", stage=Stage.UPLOAD, message="no images")
    store.transition(job, Change(), to=JobState.FAILED, error=error, failed_stage=Stage.UPLOAD)
    assert http.get(f"/v1/jobs/{job.id}").json()["error"]["code"] == "dataset_rejected"
    assert http.post(f"/v1/jobs/{job.id}/retry").json()["state"] == "uploading"


def test_a_job_of_a_newer_version_is_left_alone(http: httpx.Client, client: redis.Redis) -> None:
    job = submit(http, idempotency_key="order-1")
    key, links = keys.job(job["job_id"]), job["links"]
    client.hset(key, "state", "grading")
    submitted_again = http.post("/v1/jobs", json=sample(idempotency_key="order-1"))
    for reply in (http.get(links["self"]), http.post(links["cancel"]), http.post(links["retry"]), submitted_again):
        assert "written by another version" in problem(reply, 409, "job-unreadable")["detail"]
    assert client.hget(key, "state") == "grading"


def test_what_is_not_there_or_not_allowed(http: httpx.Client) -> None:
    problem(http.get("/v2/jobs"), 404, "not-found")
    # Not led to the path without the slash: behind a proxy that ends TLS, by a URL of plain http.
    problem(http.post("/v1/jobs/", json=sample()), 404, "not-found")
    reply = http.delete("/v1/jobs")
    problem(reply, 405, "method-not-allowed")
    assert set(reply.headers["allow"].replace(" ", "").split(",")) <= {"GET", "POST"}
