"""What only `make clouds-test` runs: jobs by real processes with everything in a bucket, and ways to log in."""

import hashlib
import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from finetune_queue.contract import JobState
from finetune_queue.local.stack import LocalStack
from finetune_queue.sdk import FineTuneQueue
from finetune_queue.storage import NoAccessError, Place, drivers
from support.clouds import CLOUDS, Store
from support.images import make_dataset_folder, make_dataset_zip
from support.samples import sample
from support.web import Answer, Route, Web


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_job_from_bucket_to_bucket(cloud: str, make_store: Callable[[str], Store], tmp_path: Path) -> None:
    store = make_store(cloud)
    staging, artifacts, datasets = f"{store.url}/staging", f"{store.url}/artifacts", f"{store.url}/datasets"
    settings = {
        "FINETUNE_STAGING_URL": staging,
        "FINETUNE_ARTIFACT_URL": artifacts,
        "FINETUNE_DATASET_BUCKETS": datasets,
    }
    make_dataset_folder(tmp_path / "images", count=6)
    make_dataset_zip(tmp_path / "a.zip", count=6)
    Place(datasets).put_file(tmp_path / "a.zip", "a b.zip")
    sandbox = {"SANDBOX_TRAINING_SECONDS": "0.5", "SANDBOX_WEIGHTS_BYTES": "20000000"}
    with (
        LocalStack(tmp_path / "stack", workers=1, rate_limit="50/1", sandbox=sandbox, settings=settings) as stack,
        FineTuneQueue(stack.settings) as queue,
    ):
        jobs = [queue.submit(sample(dataset=each)) for each in (str(tmp_path / "images"), f"{datasets}/a b.zip")]
        ended = [job.wait(60) for job in jobs]
    for job in ended:
        assert job.state is JobState.SUCCEEDED, job.record.error
        weights = job.record.weights
        assert weights is not None
        assert weights.url == f"{artifacts}/{job.id}/weights.safetensors"
        with Place(artifacts).open_read(f"{job.id}/weights.safetensors") as file:
            assert hashlib.sha256(file.read()).hexdigest() == weights.sha256
        with Place(artifacts).open_read(f"{job.id}/manifest.json") as file:
            assert json.load(file)["dataset"]["images"] == 6


def test_google_is_asked_with_the_service_accounts_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def token(request: BaseHTTPRequestHandler) -> None:
        request.rfile.read(int(request.headers["Content-Length"]))
        body = json.dumps({"access_token": "from-google", "expires_in": 3600, "token_type": "Bearer"}).encode()
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    key = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    found = json.dumps({"name": "a", "size": "1", "etag": "e", "updated": "2026-01-01T00:00:00Z"}).encode()
    routes: dict[str, Route] = {
        "/token": token,
        "/storage/v1/b/bucket/o/a": Answer(found),
        "/storage/v1/b/bucket/o": Answer(b'{"items": []}'),
    }
    with Web(routes) as web:
        account = {
            "type": "service_account",
            "project_id": "project",
            "private_key": key.decode(),
            "client_email": "worker@project",
            "token_uri": web.url("/token"),
        }
        (tmp_path / "account.json").write_text(json.dumps(account))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "account.json"))
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", web.url("").rstrip("/"))
        monkeypatch.setattr(drivers, "_filesystems", {})
        assert Place("gs://bucket").info("a").size == 1
        sent = [
            headers["authorization"] for (_, path), headers in zip(web.seen, web.headers, strict=True) if "/b/" in path
        ]
    assert set(sent) == {"Bearer from-google"}


def test_azures_key_must_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "DefaultEndpointsProtocol=http;AccountName=a;AccountKey=abc;BlobEndpoint=http://127.0.0.1:9/a"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", text)
    monkeypatch.setattr(drivers, "_filesystems", {})
    with pytest.raises(NoAccessError, match="not valid"):
        Place("az://bucket").check_writable()
