"""What tests of the gateway ask of it, and what its refusals look like."""

from typing import Any

import httpx

from support.samples import sample


def submit(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    """Submit a request; returns the job."""
    reply = http.post("/v1/jobs", json=sample(**fields))
    assert reply.status_code == 202, reply.text
    body: dict[str, Any] = reply.json()
    return body


def problem(reply: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Return the body of a refusal, which is whole (RFC 9457)."""
    body: dict[str, Any] = reply.json()
    assert (reply.status_code, body["status"], body["code"]) == (status, status, code), body
    assert reply.headers["content-type"] == "application/problem+json"
    assert body["type"] == f"urn:finetune-queue:problem:{code}"
    assert body["instance"] == f"urn:uuid:{reply.headers['x-request-id']}"
    assert body["title"]
    assert body["detail"]
    return body
