"""Calls to a live sandbox, written from the specification and with plain requests: none of our client's code."""

import io
import shutil
import socket
import zipfile
from typing import Any
from urllib.parse import urlsplit

import requests

from segmind_sandbox.testing import LiveSandbox
from support.until import until

TIMEOUT = 10
FINETUNE = "/finetune/request"
SIGNED = {"Content-Type": "application/zip", "x-amz-acl": "public-read"}


def zip_bytes(name: str = "photo.jpg", data: bytes = b"not checked") -> bytes:
    """A ZIP with one file."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr(name, data)
    return target.getvalue()


def submit_body(**fields: Any) -> dict[str, Any]:
    """The body of the page's submit sample; ``fields`` replace or add, and None takes a field away."""
    body = {
        "name": "fastfluxtest1",
        "data_source_path": "http://127.0.0.1:9/nothing.zip",
        "instance_prompt": "1MAN, running in brown suit",
        "trigger_word": "1MAN",
        "base_model": "FAST_FLUX",
        "theme": "subject",
        "segmind_public": False,
        "advance_parameters": {"steps": 2000, "face_crop": False, "finetune_type": "LORA"},
    } | fields
    return {name: value for name, value in body.items() if value is not None}


class Api:
    """One account's calls."""

    def __init__(self, sandbox: LiveSandbox, key: str | None = None) -> None:
        self.sandbox = sandbox
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.headers["x-api-key"] = sandbox.api_key if key is None else key

    def close(self) -> None:
        self.session.close()

    def call(self, method: str, path: str, **options: Any) -> requests.Response:
        options.setdefault("timeout", TIMEOUT)
        return self.session.request(method, self.sandbox.base_url + path, **options)

    def presign(self, **body: Any) -> dict[str, str]:
        reply = self.call("GET", f"{FINETUNE}/upload/pre-signed-url", json={"name": "faces", "public": True} | body)
        assert reply.status_code == 200, reply.text
        links: dict[str, str] = reply.json()
        return links

    def upload(self, data: bytes | None = None, **body: Any) -> str:
        """Presign and put a ZIP; its URL."""
        links = self.presign(**body)
        headers = SIGNED if body.get("public", True) else {"Content-Type": "application/zip"}
        reply = put(links["presigned_url"], zip_bytes() if data is None else data, headers)
        assert reply.status_code == 200, reply.text
        return links["s3_url"]

    def submit(self, **fields: Any) -> str:
        """Submit with an uploaded dataset; the job's finetune_id."""
        if "data_source_path" not in fields:
            fields["data_source_path"] = self.upload()
        reply = self.call("POST", f"{FINETUNE}/submit", json=submit_body(**fields))
        assert reply.status_code == 200, reply.text
        return str(reply.json()["finetune_id"])

    def details(self, finetune_id: str) -> dict[str, Any]:
        reply = self.call("GET", f"{FINETUNE}/details", json={"request_id": finetune_id})
        assert reply.status_code == 200, reply.text
        job: dict[str, Any] = reply.json()["finetune"]
        return job

    def list(self) -> list[dict[str, Any]]:
        reply = self.call("GET", f"{FINETUNE}/list")
        assert reply.status_code == 200, reply.text
        jobs: list[dict[str, Any]] = reply.json()
        return jobs

    def credits(self, **options: Any) -> requests.Response:
        """The cheapest call."""
        return self.call("GET", "/v1/get-user-credits", **options)

    def wait_for(self, finetune_id: str, *statuses: str) -> dict[str, Any]:
        """The job's details once its status is one of these."""
        seen: dict[str, Any] = {}

        def reached() -> bool:
            seen.update(self.details(finetune_id))
            return seen["status"] in statuses

        until(reached, seconds=TIMEOUT)
        return seen

    def trained(self, **fields: Any) -> dict[str, Any]:
        """The details of a job that is done."""
        finetune_id = self.submit(**fields)
        self.sandbox.control.change_training(finetune_id, finish=True)
        return self.details(finetune_id)


def put(url: str, data: Any, headers: dict[str, str] = SIGNED) -> requests.Response:
    """A PUT as the page's curl sends it: nothing but these headers."""
    return requests.put(url, data=data, headers=headers, timeout=TIMEOUT)


def raw_exchange(url: str, request: bytes) -> bytes:
    """All that the server of ``url`` sends for these bytes until it closes. Raises ConnectionResetError on a RST."""
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    with socket.create_connection((parts.hostname, parts.port), timeout=TIMEOUT) as connection:
        connection.sendall(request)
        received = bytearray()
        while chunk := connection.recv(65536):
            received += chunk
    return bytes(received)


def raw_request(
    sandbox: LiveSandbox, method: str, target: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> bytes:
    """The bytes of a request with the sandbox's key that asks the server to close afterwards."""
    lines = {"Host": urlsplit(sandbox.base_url).netloc, "x-api-key": sandbox.api_key, "Connection": "close"}
    if body:
        lines["Content-Length"] = str(len(body))
    lines |= headers or {}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode() + body


def curl() -> str | None:
    """Where curl is, if it is."""
    return shutil.which("curl")
