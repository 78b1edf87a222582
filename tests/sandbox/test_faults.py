"""Every kind of fault, seen from the client's side of a real socket."""

import hashlib
import json
import socket
import time
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from sandbox.calls import FINETUNE, TIMEOUT, Api, put, raw_exchange, raw_request, submit_body, zip_bytes
from segmind_sandbox.testing import LiveSandbox
from support.until import until


def submit_request(sandbox: LiveSandbox, dataset: str) -> bytes:
    body = json.dumps(submit_body(data_source_path=dataset)).encode()
    return raw_request(sandbox, "POST", f"{FINETUNE}/submit", body, {"Content-Type": "application/json"})


def submits(sandbox: LiveSandbox) -> int:
    return int(sandbox.control.report()["submits"]["total"])


def test_a_lost_reply_closes_the_connection_after_the_job_is_taken(api: Api, sandbox: LiveSandbox) -> None:
    request = submit_request(sandbox, api.upload())
    sandbox.control.add_fault(op="submit", kind="reply_lost")

    assert raw_exchange(sandbox.base_url, request) == b""

    assert submits(sandbox) == len(api.list()) == 1
    assert sandbox.control.report()["calls"]["submit"] == {"reply_lost": 1}
    assert raw_exchange(sandbox.base_url, request).startswith(b"HTTP/1.1 200 ")


def test_a_reset_sends_rst_before_the_job_is_taken(api: Api, sandbox: LiveSandbox) -> None:
    request = submit_request(sandbox, api.upload())
    sandbox.control.add_fault(op="submit", kind="reset")

    with pytest.raises(ConnectionResetError):
        raw_exchange(sandbox.base_url, request)

    assert submits(sandbox) == len(api.list()) == 0
    assert sandbox.control.report()["calls"]["submit"] == {"reset": 1}


def test_a_client_that_has_left_before_its_reset_is_no_error(
    sandbox: LiveSandbox, caplog: pytest.LogCaptureFixture
) -> None:
    sandbox.control.add_fault(op="credits", kind="slow", seconds=0.2)
    sandbox.control.add_fault(op="credits", kind="reset")
    address = urlsplit(sandbox.base_url)
    with socket.create_connection((address.hostname, address.port), timeout=TIMEOUT) as client:
        client.sendall(raw_request(sandbox, "GET", "/v1/get-user-credits", b"", {}))
    until(lambda: sandbox.control.report()["calls"].get("credits") == {"reset": 1}, seconds=TIMEOUT)
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize("kind", ["reply_lost", "reset"])
def test_a_connection_that_was_used_before_is_closed_too(api: Api, sandbox: LiveSandbox, kind: str) -> None:
    assert api.credits().status_code == 200
    sandbox.control.add_fault(op="credits", kind=kind, count=3)
    for _ in range(3):
        with pytest.raises(requests.ConnectionError):
            api.credits()
    assert api.credits().status_code == 200


@pytest.mark.parametrize("processed", [False, True])
@pytest.mark.parametrize("status", [500, 502, 503, 402])
def test_an_error_status_before_or_after_the_effect(
    api: Api, sandbox: LiveSandbox, status: int, *, processed: bool
) -> None:
    dataset = api.upload()
    sandbox.control.add_fault(op="submit", kind="http_error", status=status, processed=processed)
    reply = api.call("POST", f"{FINETUNE}/submit", json=submit_body(data_source_path=dataset))
    assert (reply.status_code, list(reply.json())) == (status, ["error"])
    assert submits(sandbox) == int(processed)


@pytest.mark.parametrize(("body", "start"), [("empty", ""), ("html", "<!doctype html>")])
def test_error_bodies_of_other_shapes(api: Api, sandbox: LiveSandbox, body: str, start: str) -> None:
    sandbox.control.add_fault(op="list", kind="http_error", status=502, body=body)
    reply = api.call("GET", f"{FINETUNE}/list")
    assert reply.status_code == 502
    assert reply.text.startswith(start)
    assert bool(reply.text) == bool(start)


@pytest.mark.parametrize("processed", [False, True])
def test_slow(api: Api, sandbox: LiveSandbox, *, processed: bool) -> None:
    dataset = api.upload()
    sandbox.control.add_fault(op="submit", kind="slow", seconds=1, processed=processed)
    started = time.monotonic()
    with pytest.raises(requests.ReadTimeout):
        api.call("POST", f"{FINETUNE}/submit", json=submit_body(data_source_path=dataset), timeout=0.2)
    assert submits(sandbox) == int(processed)
    until(lambda: submits(sandbox) == 1, seconds=30)  # the client has gone; the job is taken all the same
    assert processed or time.monotonic() - started >= 1


@pytest.mark.parametrize("retry_after", [None, 7])
def test_rate_limited(api: Api, sandbox: LiveSandbox, retry_after: int | None) -> None:
    sandbox.control.add_fault(op="api", kind="rate_limited", retry_after=retry_after)
    reply = api.credits()
    assert reply.status_code == 429
    assert reply.headers.get("Retry-After") == (None if retry_after is None else "7")
    assert sandbox.control.report()["accounts"]["account-1"]["rejected"] == 0


def test_malformed_json_after_the_effect(api: Api, sandbox: LiveSandbox) -> None:
    dataset = api.upload()
    sandbox.control.add_fault(op="submit", kind="malformed_json")
    reply = api.call("POST", f"{FINETUNE}/submit", json=submit_body(data_source_path=dataset))
    assert reply.status_code == 200
    with pytest.raises(requests.JSONDecodeError):
        reply.json()
    assert submits(sandbox) == 1


@pytest.mark.parametrize("processed", [False, True])
def test_html_with_status_200(api: Api, sandbox: LiveSandbox, *, processed: bool) -> None:
    dataset = api.upload()
    sandbox.control.add_fault(op="submit", kind="html_200", processed=processed)
    reply = api.call("POST", f"{FINETUNE}/submit", json=submit_body(data_source_path=dataset))
    assert (reply.status_code, reply.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert submits(sandbox) == int(processed)


def test_a_partial_list(api: Api, sandbox: LiveSandbox) -> None:
    dataset = api.upload()
    names = {api.submit(name=f"job-{number}", data_source_path=dataset) for number in range(12)}
    sandbox.control.add_fault(op="list", kind="partial_list", missing=0.5, count=None)
    listed = [frozenset(item["finetune_id"] for item in api.list()) for _ in range(8)]
    assert all(some <= names for some in listed)
    assert len(set(listed)) > 1
    sandbox.control.add_fault(op="list", kind="partial_list", missing=1)
    assert api.list() == []


def test_the_fates_of_trainings(api: Api, sandbox: LiveSandbox) -> None:
    dataset = api.upload()
    fates: dict[str, dict[str, Any]] = {
        "failing": {"kind": "fail_training", "message": "no faces found"},
        "odd": {"kind": "unknown_status", "word": "WARMING_UP"},
        "late": {"kind": "list_lag", "seconds": 1.5},
        "hidden": {"kind": "hidden"},
        "held": {"kind": "hold"},
    }
    sandbox.control.change_settings(training_seconds=1, deploy_seconds=0)
    for name, fate in fates.items():
        sandbox.control.add_fault(op="training", match=name, **fate)
    jobs = {name: api.submit(name=name, data_source_path=dataset) for name in [*fates, "plain"]}
    assert "late" not in {item["name"] for item in api.list()}

    assert api.wait_for(jobs["odd"], "WARMING_UP", "AVAILABLE")["status"] == "WARMING_UP"
    assert api.wait_for(jobs["failing"], "FAILED")["error_message"] == "no faces found"
    for name in ("odd", "late", "hidden", "plain"):
        api.wait_for(jobs[name], "AVAILABLE")
    assert api.details(jobs["held"])["status"] == "TRAINING_INITIATED"
    until(lambda: {item["name"] for item in api.list()} == set(jobs) - {"hidden"}, seconds=30)

    sandbox.control.change_training(jobs["held"], hold=False)
    api.wait_for(jobs["held"], "AVAILABLE")


def test_slow_down_of_the_storage(api: Api, sandbox: LiveSandbox) -> None:
    links, job = api.presign(), api.trained()
    for op in ("put", "dataset_get", "dataset_head", "download", "download_head"):
        sandbox.control.add_fault(op=op, kind="slow_down")
    replies = [
        put(links["presigned_url"], zip_bytes()),
        requests.get(links["s3_url"], timeout=TIMEOUT),
        requests.get(job["cloud_storage_url"], timeout=TIMEOUT),
    ]
    assert [reply.status_code for reply in replies] == [503] * 3
    assert all("<Code>SlowDown</Code>" in reply.text for reply in replies)
    assert requests.head(links["s3_url"], timeout=TIMEOUT).status_code == 503
    assert requests.head(job["cloud_storage_url"], timeout=TIMEOUT).status_code == 503
    assert put(links["presigned_url"], zip_bytes()).status_code == 200


def test_an_upload_whose_reply_is_lost_is_stored(api: Api, sandbox: LiveSandbox) -> None:
    links = api.presign()
    sandbox.control.add_fault(op="put", kind="reply_lost")
    sandbox.control.add_fault(op="put", kind="reset")
    with pytest.raises(requests.ConnectionError):
        put(links["presigned_url"], b"first")
    assert requests.get(links["s3_url"], timeout=TIMEOUT).content == b"first"
    with pytest.raises(requests.ConnectionError):
        put(links["presigned_url"], b"second")
    assert requests.get(links["s3_url"], timeout=TIMEOUT).content == b"first"


def raw_download(sandbox: LiveSandbox, url: str, extra: str = "") -> tuple[bytes, bytes]:
    """Head and body of a download, with no client library in between."""
    target = url.removeprefix(sandbox.base_url)
    request = f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{extra}\r\n".encode()
    head, _, body = raw_exchange(sandbox.base_url, request).partition(b"\r\n\r\n")
    return head, body


@pytest.mark.parametrize("after_bytes", [0, 1, 1000, 65535, 10**9])
def test_a_truncated_download(api: Api, sandbox: LiveSandbox, after_bytes: int) -> None:
    url = api.trained()["cloud_storage_url"]
    whole = requests.get(url, timeout=TIMEOUT).content
    sandbox.control.add_fault(op="download", kind="truncated", after_bytes=after_bytes)

    head, body = raw_download(sandbox, url)

    assert b"content-length: 65536" in head.lower()
    assert body == whole[: min(after_bytes, 65535)]
    sandbox.control.add_fault(op="download", kind="truncated")
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        requests.get(url, timeout=TIMEOUT)


def test_a_truncated_range(api: Api, sandbox: LiveSandbox) -> None:
    url = api.trained()["cloud_storage_url"]
    whole = requests.get(url, timeout=TIMEOUT).content
    sandbox.control.add_fault(op="download", kind="truncated", after_bytes=1000)
    head, body = raw_download(sandbox, url, "Range: bytes=30000-\r\n")
    assert head.startswith(b"HTTP/1.1 206 ")
    assert body == whole[30000:31000]


@pytest.mark.parametrize("at_byte", [0, 1000, 10**9])
def test_a_corrupted_download(api: Api, sandbox: LiveSandbox, at_byte: int) -> None:
    url = api.trained()["cloud_storage_url"]
    whole = requests.get(url, timeout=TIMEOUT)
    sandbox.control.add_fault(op="download", kind="corrupted", at_byte=at_byte)
    wrong = requests.get(url, timeout=TIMEOUT)
    assert wrong.headers["ETag"] == whole.headers["ETag"] != f'"{hashlib.md5(wrong.content).hexdigest()}"'
    different = [index for index in range(65536) if wrong.content[index] != whole.content[index]]
    assert different == [min(at_byte, 65535)]


def test_a_download_that_stalls(api: Api, sandbox: LiveSandbox) -> None:
    url = api.trained()["cloud_storage_url"]
    sandbox.control.add_fault(op="download", kind="stall", after_bytes=1000, seconds=30)
    with requests.get(url, stream=True, timeout=1) as reply:
        assert len(reply.raw.read(1000)) == 1000
        with pytest.raises(requests.ConnectionError):
            list(reply.iter_content(1000))

    sandbox.control.add_fault(op="download", kind="stall", after_bytes=65000, seconds=0.2)
    started = time.monotonic()
    assert len(requests.get(url, timeout=TIMEOUT).content) == 65536
    assert time.monotonic() - started >= 0.2


@pytest.mark.parametrize(
    ("kind", "options"), [("stall", {"seconds": 0.01}), ("truncated", {}), ("corrupted", {}), ("ignore_range", {})]
)
def test_a_fault_of_the_bytes_is_not_used_up_by_a_refusal(
    api: Api, sandbox: LiveSandbox, kind: str, options: dict[str, Any]
) -> None:
    sandbox.control.change_settings(private_weights=True)
    url = api.trained()["cloud_storage_url"]
    link = api.call("GET", f"{FINETUNE}/file/download", data={"cloud_storage_url": url}).text
    sandbox.control.add_fault(op="download", kind=kind, **options)

    assert requests.get(url, timeout=TIMEOUT).status_code == 403
    assert sandbox.control.report()["faults"] == {}
    with requests.get(link, stream=True, timeout=TIMEOUT) as reply:
        assert reply.status_code == 200
    assert sandbox.control.report()["faults"] == {kind: 1}
    assert [(fault["left"], fault["fired"]) for fault in sandbox.control.faults()] == [(0, 1)]


def test_a_fault_of_the_bytes_waits_while_another_answers(api: Api, sandbox: LiveSandbox) -> None:
    url = api.trained()["cloud_storage_url"]
    sandbox.control.add_fault(op="download", kind="corrupted", at_byte=0)
    sandbox.control.add_fault(op="download", kind="http_error", status=503)
    first, second, third = (requests.get(url, timeout=TIMEOUT) for _ in range(3))
    assert (first.status_code, second.status_code) == (503, 200)
    assert second.content[0] != third.content[0]


def test_a_range_that_is_not_honoured(api: Api, sandbox: LiveSandbox) -> None:
    url = api.trained()["cloud_storage_url"]
    sandbox.control.add_fault(op="download", kind="ignore_range")
    replies = [requests.get(url, headers={"Range": "bytes=5-9"}, timeout=TIMEOUT) for _ in range(2)]
    assert [(reply.status_code, len(reply.content)) for reply in replies] == [(200, 65536), (206, 5)]
