"""Which fault hits which call: the faults of the settings and of the control API, and what these refuse."""

from typing import Any

import httpx
import pytest

from sandbox.calls import FINETUNE, Api, put
from segmind_sandbox.faults import FAULT, FaultBook
from segmind_sandbox.settings import SandboxSettings
from segmind_sandbox.testing import LiveSandbox, run_sandbox


def test_faults_of_the_settings_come_back_with_a_reset() -> None:
    faults = [{"op": "credits", "kind": "http_error"}]
    with run_sandbox(SandboxSettings.model_validate({"faults": faults})) as sandbox:
        api = Api(sandbox)
        for _ in range(2):
            assert [api.credits().status_code for _ in range(2)] == [500, 200]
            sandbox.control.reset()
        api.close()


def test_faults_can_be_taken_away(api: Api, sandbox: LiveSandbox) -> None:
    number = sandbox.control.add_fault(op="credits", kind="http_error", count=None)
    assert [api.credits().status_code for _ in range(2)] == [500, 500]
    sandbox.control.remove_fault(number)
    assert api.credits().status_code == 200
    with pytest.raises(httpx.HTTPStatusError):
        sandbox.control.remove_fault(number)
    sandbox.control.add_fault(op="credits", kind="http_error")
    sandbox.control.reset("faults")
    assert api.credits().status_code == 200
    assert sandbox.control.report()["faults"] == {"http_error": 2}


def test_several_faults_make_a_sequence_and_slow_joins_each(api: Api, sandbox: LiveSandbox) -> None:
    sandbox.control.add_fault(op="credits", kind="http_error", status=503)
    sandbox.control.add_fault(op="credits", kind="slow", seconds=0.05, count=2)
    sandbox.control.add_fault(op="credits", kind="rate_limited")
    assert [api.credits().status_code for _ in range(3)] == [503, 429, 200]
    assert sandbox.control.report()["faults"] == {"http_error": 1, "slow": 2, "rate_limited": 1}
    assert [(fault["kind"], fault["left"], fault["fired"]) for fault in sandbox.control.faults()] == [
        ("http_error", 0, 1),
        ("slow", 0, 2),
        ("rate_limited", 0, 1),
    ]


def test_a_probability_fires_about_that_often_and_repeatably() -> None:
    fault = FAULT.validate_python({"op": "list", "kind": "reset", "probability": 0.3})
    draws = [[bool(book.draw("list", "")) for _ in range(2000)] for book in (FaultBook([fault], 7) for _ in range(2))]
    assert draws[0] == draws[1]
    assert 500 < sum(draws[0]) < 700


def test_match_looks_at_path_and_body(api: Api, sandbox: LiveSandbox) -> None:
    sandbox.control.add_fault(op="presign", kind="http_error", match="job-7", count=None)
    wrong = api.call("GET", f"{FINETUNE}/upload/pre-signed-url", json={"name": "job-7", "public": True})
    assert wrong.status_code == 500
    api.presign(name="job-8")

    sandbox.control.add_fault(op="put", kind="slow_down", match="job-9")
    assert put(api.presign(name="job-8")["presigned_url"], b"x").status_code == 200
    assert put(api.presign(name="job-9")["presigned_url"], b"x").status_code == 503


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/faults", b"[" * 100_000),
        ("POST", "/faults", b'{"op": "list", "kind": "slow", "seconds": Infinity}'),
        ("PATCH", "/settings", b'{"training_seconds": Infinity}'),
    ],
)
def test_a_body_that_no_json_is_is_refused_and_changes_nothing(
    sandbox: LiveSandbox, api: Api, method: str, path: str, body: bytes
) -> None:
    reply = httpx.request(method, f"{sandbox.base_url}/_sandbox{path}", content=body, trust_env=False)
    assert (reply.status_code, list(reply.json())) == (400, ["error"])
    assert sandbox.control.faults() == []
    assert api.trained()


@pytest.mark.parametrize(
    "fault",
    [
        {"op": "submit", "kind": "explode"},
        {"op": "nowhere", "kind": "reset"},
        {"op": "submit", "kind": "hold"},
        {"op": "training", "kind": "reset"},
        {"op": "submit", "kind": "slow_down"},
        {"op": "put", "kind": "truncated"},
        {"op": "submit", "kind": "slow"},
        {"op": "submit", "kind": "reset", "count": 0},
        {"op": "submit", "kind": "reset", "probability": 1.5},
        {"op": "submit", "kind": "reset", "status": 500},
    ],
)
def test_a_fault_that_makes_no_sense_is_refused(sandbox: LiveSandbox, fault: dict[str, Any]) -> None:
    with pytest.raises(httpx.HTTPStatusError) as refusal:
        sandbox.control.add_fault(**fault)
    assert refusal.value.response.status_code == 400
    assert sandbox.control.faults() == []


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            {"op": "put", "kind": "explode"},
            "put has no fault of the kind 'explode'; known: http_error, reply_lost, reset",
        ),
        ({"op": "training", "kind": "reset"}, "training has no fault of the kind 'reset'; known: fail_training, "),
        ({"op": "nowhere", "kind": "reset"}, "there is no operation 'nowhere'; known: submit, details, list"),
        ({"op": ["put"], "kind": "reset"}, "there is no operation ['put']; known: submit"),
        ({"op": "submit", "kind": "slow"}, "seconds: Field required"),
        ({"op": "submit", "kind": "reset", "status": 500}, "status: Extra inputs are not permitted"),
    ],
)
def test_a_refusal_is_one_sentence(sandbox: LiveSandbox, fault: dict[str, Any], said: str) -> None:
    with pytest.raises(httpx.HTTPStatusError) as refusal:
        sandbox.control.add_fault(**fault)
    assert str(refusal.value).startswith(said)
    assert "\n" not in str(refusal.value)


def test_so_is_that_of_a_change(sandbox: LiveSandbox) -> None:
    with pytest.raises(httpx.HTTPStatusError, match=r"^link_seconds: Input should be greater than or equal to 1$"):
        sandbox.control.change_settings(link_seconds=0)
