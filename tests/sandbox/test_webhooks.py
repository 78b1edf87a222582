"""Webhooks: told on three status changes, once each, and not in the way of anything."""

import json
import queue
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from sandbox.calls import Api
from segmind_sandbox.settings import SandboxSettings
from segmind_sandbox.testing import LiveSandbox, run_sandbox
from segmind_sandbox.trainings import STATUSES
from support.until import until
from support.web import Web

WAIT = 10


class Receiver:
    """A webhook's receiver: what was posted, and the status that it answers."""

    def __init__(self) -> None:
        self.status = 200
        self.received: queue.Queue[dict[str, Any]] = queue.Queue()
        self.types: list[str] = []
        self.web = Web({"/hook": self.take})

    def take(self, request: BaseHTTPRequestHandler) -> None:
        assert request.command == "POST"
        self.types.append(request.headers["Content-Type"])
        self.received.put(json.loads(request.rfile.read(int(request.headers["Content-Length"]))))
        request.send_response(self.status)
        request.send_header("Content-Length", "0")
        request.end_headers()

    @property
    def url(self) -> str:
        return self.web.url("/hook")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    with receiver.web:
        yield receiver


def register(api: Api, url: str, *types: str) -> str:
    body = {"webhook_url": url, "event": {"types": list(types) or ["FINETUNE"]}}
    reply = api.call("POST", "/webhook/add", json=body)
    assert reply.status_code == 200, reply.text
    return str(reply.json()["webhook_id"])


def logs(api: Api, webhook_id: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = api.call("GET", "/webhook/dispatch-logs", params={"webhook_id": webhook_id}).json()[
        "logs"
    ]
    return entries


def test_three_events(api: Api, receiver: Receiver) -> None:
    webhook_id = register(api, receiver.url)
    finetune_id = api.submit(name="told")

    events = [receiver.received.get(timeout=WAIT) for _ in range(3)]

    # Deliveries do not wait for each other, so two may change places on the way.
    by_status = {event["status"]: event for event in events}
    assert set(by_status) == {"TRAINING_COMPLETED", "INFERENCE_QUEUED", "AVAILABLE"}
    assert {event["finetune_id"] for event in events} == {finetune_id}
    assert {event["trained_model_url"] for event in events} == {api.details(finetune_id)["cloud_storage_url"]}
    assert [status for status, event in by_status.items() if event["inference_api_url"]] == ["AVAILABLE"]
    assert set(receiver.types) == {"application/json"}
    until(lambda: len(logs(api, webhook_id)) == 3, seconds=WAIT)
    assert {(entry["status"], entry["response_code"]) for entry in logs(api, webhook_id)} == {("delivered", 200)}
    assert receiver.received.empty()


def test_a_webhook_added_while_the_job_runs(api: Api, sandbox: LiveSandbox, receiver: Receiver) -> None:
    sandbox.control.add_fault(op="training", kind="hold")
    finetune_id = api.submit()
    register(api, receiver.url)
    sandbox.control.change_training(finetune_id, finish=True)
    assert "AVAILABLE" in {receiver.received.get(timeout=WAIT)["status"] for _ in range(3)}


def test_a_failed_job_and_other_accounts_tell_nothing(
    api: Api, other: Api, sandbox: LiveSandbox, receiver: Receiver
) -> None:
    register(api, receiver.url)
    sandbox.control.add_fault(op="training", kind="fail_training", match="failing")
    failed, foreign = api.submit(name="failing"), other.submit(name="foreign")
    api.wait_for(failed, "FAILED")
    other.wait_for(foreign, "AVAILABLE")
    last = api.submit(name="last")
    assert {receiver.received.get(timeout=WAIT)["finetune_id"] for _ in range(3)} == {last}


def test_a_job_that_is_not_deployed_tells_of_its_weights(api: Api, sandbox: LiveSandbox, receiver: Receiver) -> None:
    register(api, receiver.url)
    sandbox.control.add_fault(op="training", kind="fail_deploy", match="undeployed")
    undeployed = api.submit(name="undeployed")
    api.wait_for(undeployed, "INFERENCE_FAILED")
    last = api.submit(name="last")
    told = [receiver.received.get(timeout=WAIT) for _ in range(5)]
    assert {each["status"] for each in told if each["finetune_id"] == undeployed} == {*STATUSES[3:5]}
    assert {each["status"] for each in told if each["finetune_id"] == last} == {*STATUSES[3:5], STATUSES[6]}


def test_a_receiver_that_fails_or_is_away_is_tried_once(api: Api, receiver: Receiver) -> None:
    receiver.status = 500
    webhook_id = register(api, receiver.url)
    api.submit()
    until(lambda: len(logs(api, webhook_id)) == 3, seconds=WAIT)
    assert {(entry["status"], entry["response_code"]) for entry in logs(api, webhook_id)} == {("failed", 500)}

    body = {"webhook_id": webhook_id, "webhook_url": "http://127.0.0.1:9/", "event": {"types": ["FINETUNE"]}}
    assert api.call("POST", "/webhook/update", json=body).status_code == 200
    api.submit()
    until(lambda: len(logs(api, webhook_id)) == 6, seconds=WAIT)
    assert logs(api, webhook_id)[0]["error"] == "ConnectError"
    assert receiver.received.qsize() == 3


def test_one_webhook_for_finetunes_at_a_time(api: Api, receiver: Receiver) -> None:
    register(api, receiver.url, "PIXELFLOW")
    first = register(api, receiver.url)
    body = {"webhook_url": receiver.url, "event": {"types": ["FINETUNE"]}}
    assert api.call("POST", "/webhook/add", json=body).status_code == 400
    api.call("GET", "/webhook/inactive", params={"webhook_id": first})
    register(api, receiver.url)


@pytest.mark.parametrize(
    "body",
    [
        {"event": {"types": ["FINETUNE"]}},
        {"webhook_url": "ftp://x", "event": {"types": ["FINETUNE"]}},
        {"webhook_url": "http://x", "event": {"types": []}},
        {"webhook_url": "http://x", "event": ["FINETUNE"]},
    ],
)
def test_a_wrong_webhook(api: Api, body: dict[str, Any]) -> None:
    assert api.call("POST", "/webhook/add", json=body).status_code == 400


def test_unknown_webhooks(api: Api, other: Api, receiver: Receiver) -> None:
    webhook_id = register(api, receiver.url)
    for calls, asked in ((other, webhook_id), (api, "unknown")):
        for path in ("inactive", "dispatch-logs"):
            assert calls.call("GET", f"/webhook/{path}", params={"webhook_id": asked}).status_code == 404
    assert api.call("GET", "/webhook/inactive").status_code == 400


def test_a_webhook_given_at_start_as_in_the_console(receiver: Receiver) -> None:
    settings = SandboxSettings(webhook_url=receiver.url, training_seconds=0.1, deploy_seconds=0)
    with run_sandbox(settings) as sandbox:
        api = Api(sandbox)
        api.submit()
        assert "TRAINING_COMPLETED" in {receiver.received.get(timeout=WAIT)["status"] for _ in range(3)}
        api.close()
