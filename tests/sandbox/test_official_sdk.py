"""Segmind's own SDK against the sandbox: unchanged, but that its hosts are the sandbox, as the page on it says how."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import safetensors

from sandbox.calls import TIMEOUT, put, zip_bytes
from segmind_sandbox.testing import LiveSandbox
from support.until import until

# Not import statements: the folder tests/segmind hides the package from mypy.
segmind: Any = importlib.import_module("segmind")
SegmindError: type[Any] = segmind.SegmindError
PAGE = (Path(__file__).resolve().parents[2] / "docs/sandbox.md").read_text(encoding="utf-8")


@pytest.fixture
def client(sandbox: LiveSandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for namespace in (segmind.client.Finetune, segmind.client.Webhooks):
        monkeypatch.setattr(namespace, "base_url", "http://127.0.0.1:9")  # never Segmind's own; put back in the end
    [shown] = re.findall(r"^```python\n(from segmind import .*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {"base_url": sandbox.base_url}
    exec(shown.replace("sandbox-key", sandbox.api_key), names)
    client = names["client"]
    yield client
    client._client.close()


def test_the_readme_of_the_sdk(client: Any) -> None:
    upload = client.finetune.upload_presigned_url(name="my-dataset.zip")
    assert upload["s3_url"].endswith("-my-dataset.zip")
    assert put(upload["presigned_url"], zip_bytes(), {"Content-Type": "application/zip"}).status_code == 200

    job = client.finetune.submit(
        name="flux-job-1",
        data_source_path=upload["s3_url"],
        instance_prompt="1MAN, running in brown suit",
        trigger_word="1MAN",
        base_model="FLUX",
        train_type="LORA",
        machine_type="NVIDIA_A100_40GB",
        theme="FLUX",
        segmind_public=False,
        advance_parameters={"steps": 1000, "batch_size": 2, "learning_rate": 4e-4},
    )

    def details() -> dict[str, Any]:
        found: dict[str, Any] = client.finetune.details(request_id=job["finetune_id"])["finetune"]
        return found

    until(lambda: details()["status"] == "AVAILABLE", seconds=TIMEOUT)
    assert [item["finetune_id"] for item in client.finetune.list()] == [job["finetune_id"]]
    assert client.finetune.access_update(request_id=job["finetune_id"], segmind_public=True) == 200
    assert details()["public_model"] is True

    private = details()["cloud_storage_url"]
    assert requests.get(private, timeout=TIMEOUT).status_code == 403
    link = client.finetune.file_download(cloud_storage_url=private)
    weights = requests.get(link, timeout=TIMEOUT)
    assert weights.status_code == 200
    assert any("lora_A" in name for name, _ in safetensors.deserialize(weights.content))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("theme", [{"theme": "subject"}, {}], ids=["theme", "no theme"])
def test_fast_flux(client: Any, theme: dict[str, str]) -> None:
    job = client.finetune.submit(
        name="fast",
        data_source_path="http://127.0.0.1:9/nothing.zip",
        instance_prompt="1MAN, running in brown suit",
        trigger_word="1MAN",
        base_model="FAST_FLUX",
        train_type="LORA",
        machine_type="NVIDIA_A100_40GB",
        **theme,
    )
    assert job["status"] == "REQUESTED"


def test_errors_are_those_that_the_sdk_reads(client: Any, sandbox: LiveSandbox) -> None:
    with pytest.raises(SegmindError) as refusal:
        client.finetune.details(request_id="unknown")
    assert (refusal.value.status, refusal.value.detail) == (404, "Finetune request not found")

    sandbox.control.change_settings(rate_limit="1/60")
    client.finetune.list()
    with pytest.raises(SegmindError) as refusal:
        client.finetune.list()
    assert (refusal.value.status, refusal.value.detail) == (429, "Rate limit exceeded")


def test_webhooks(client: Any, sandbox: LiveSandbox) -> None:
    assert client.webhooks.get() == {"webhooks": []}
    added = client.webhooks.add("http://127.0.0.1:9/hook", ["FINETUNE"])
    webhook_id = added["webhook_id"]
    assert added["status"] == "success"
    with pytest.raises(SegmindError) as refusal:
        client.webhooks.add("http://127.0.0.1:9/second", ["FINETUNE"])
    assert refusal.value.status == 400

    assert client.webhooks.update(webhook_id, "http://127.0.0.1:9/moved", ["FINETUNE"])["webhook_id"] == webhook_id
    assert client.webhooks.get()["webhooks"][0]["webhook_url"].endswith("/moved")
    sandbox.control.test_webhook(webhook_id)
    until(lambda: bool(client.webhooks.logs(webhook_id)["logs"]), seconds=TIMEOUT)
    assert client.webhooks.logs(webhook_id)["logs"][0]["status"] == "failed"

    assert client.webhooks.delete(webhook_id)["status"] == "success"
    assert client.webhooks.get()["webhooks"][0]["status"] == "inactive"
    client.webhooks.add("http://127.0.0.1:9/next", ["FINETUNE"])
    with pytest.raises(SegmindError):
        client.webhooks.update(webhook_id, "http://127.0.0.1:9/again", ["FINETUNE"])
