"""The OpenAPI document: complete, and true of what the gateway does. schemathesis tries to find out otherwise."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from finetune_queue.gateway import hub
from finetune_queue.gateway.backend import MAX_UPLOADS
from finetune_queue.gateway.edge import MAX_JSON, MAX_RUNNING
from finetune_queue.gateway.problems import TITLES
from gateway.serving import TOKEN

OPERATIONS = {"get", "put", "post", "delete", "patch", "head", "options", "trace"}


@pytest.fixture
def document(http: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = http.get("/openapi.json").json()
    return found


def operations(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{method.upper()} {path}", operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method in OPERATIONS
    ]


def test_every_operation_is_described_with_its_errors(document: dict[str, Any]) -> None:
    found = operations(document)
    assert len(found) >= 15
    for name, operation in found:
        assert operation["description"], name
        replies = operation["responses"]
        for status, reply in replies.items():
            assert reply["description"], (name, status)
            if int(status) >= 400:
                assert list(reply["content"]) == ["application/problem+json"], (name, status)
        if "/v1/" in name:
            assert {"401", "429", "503"} <= replies.keys(), name
            assert operation["security"] == [{"HTTPBearer": []}], name
    statuses = {int(status) for _, operation in found for status in operation["responses"]}
    assert {status for status, _ in TITLES.values()} - {405, 500} <= statuses


def test_every_parameter_and_field_of_a_request_is_described(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        for parameter in operation.get("parameters", []):
            assert parameter.get("description") or parameter["name"] in {"limit", "account", "token"}, (name, parameter)
    fields = document["components"]["schemas"]["SubmitBody"]["properties"]
    assert [name for name, field in fields.items() if not field.get("description")] == []


def test_the_page_in_docs_names_every_call(document: dict[str, Any]) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "gateway.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(/[\w/]+)`", page))
    for path in document["paths"]:
        if not path.startswith("/hooks/"):  # Segmind's alone
            call = path.replace("{job_id}", "JOB")
            assert {call, f"/{call.rpartition('/')[2]}"} & named, path
    told = f"{MAX_RUNNING} requests, {MAX_UPLOADS} uploads", f"{hub.MAX_FOLLOWERS} streams", f"{MAX_JSON // 1024} kB"
    assert [text for text in told if text not in " ".join(page.split())] == []


def test_no_page_of_the_framework_loads_scripts_from_elsewhere(http: httpx.Client) -> None:
    assert [http.get(path).status_code for path in ("/docs", "/redoc")] == [404, 404]


SINKS = ["stream://events", "list://events?events=all", "celery://orders/orders.trained", "https://example.com/x"]

ACCEPTED = """
[[operations]]
include-path = "/v1/datasets"
# That the bytes have to be a ZIP is more than a schema can say.
checks = { positive_data_acceptance = { expected-statuses = ["2xx", 422] } }
"""


@pytest.mark.long
def test_it_holds_under_schemathesis(url: str, document: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "LIFETIME", 0.2)
    # A sink's URL is valid by rules that a schema has no words for; a few that are stand for all.
    fields = document["components"]["schemas"]["SubmitBody"]["properties"]
    fields["reply_to"]["items"]["enum"] = SINKS
    # A deadline has to be in the future, which a schema has no word for either.
    fields["deadline"]["anyOf"][0]["enum"] = ["2100-01-31T18:00:00Z"]
    # Nor for two keys that have to be the same: that of the header stands for both.
    del fields["idempotency_key"]
    Path("openapi.json").write_text(json.dumps(document))
    Path("schemathesis.toml").write_text(ACCEPTED)
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", "openapi.json", "--url", url),
        *("--header", f"Authorization: Bearer {TOKEN}", "--phases", "examples,coverage,fuzzing,stateful"),
        *("--max-examples", "5", "--seed", "1", "--no-color", "--request-timeout", "10", "--checks", "all"),
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
