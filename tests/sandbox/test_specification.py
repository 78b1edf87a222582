"""The specification's curl lines, run as they stand but for the host: every operation, in the page's order; and its
sample replies, of which the sandbox's have the fields, the types and what is no placeholder."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sandbox.calls import FINETUNE, TIMEOUT, Api, curl, submit_body, zip_bytes
from segmind_sandbox.testing import LiveSandbox

needs_curl = pytest.mark.skipif(curl() is None, reason="curl is not installed; test_contract sends the same bytes")

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
WEIGHTS = re.compile(r"https?://[^?]*/[^/?]*\.safetensors")
SLUG = re.compile(r"[a-z0-9-]+")

DETAILS = {  # section 2: what a deployed job of the page's submit has; a pattern where the page has a placeholder
    "id": UUID,
    "finetune_id": UUID,
    "name": "fastfluxtest1",
    "instance_prompt": "1MAN, running in brown suit",
    "status": "AVAILABLE",
    "source_type": "AWS_S3",
    "base_model": "FAST_FLUX",
    "slug": SLUG,
    "public_model": False,
    "error_message": None,
    "cloud_storage_url": WEIGHTS,
    "created_ts": TIME,
    "updated_ts": TIME,
}
ITEM = {  # section 3
    "id": UUID,
    "name": "fastfluxtest1",
    "status": "AVAILABLE",
    "error_message": None,
    "segmind_model_path": None,
    "advance_parameters": {"steps": 2000, "face_crop": False, "finetune_type": "LORA"},
    "segmind_public_model": False,
    "train_type": "LORA",
    "source_type": "AWS_S3",
    "base_model": "FAST_FLUX",
    "theme": "subject",
    "cloud_storage_url": None,
    "finetune_id": UUID,
    "model_information": {},
}


def as_on_the_page(reply: dict[str, Any], sample: dict[str, Any], dataset: str) -> bool:
    """Whether a reply has the sample's fields and values, of the same types, and no others."""
    expected = {**sample, "data_source_path": dataset}
    return reply.keys() == expected.keys() and all(
        isinstance(found, str) and value.fullmatch(found) is not None
        if isinstance(value, re.Pattern)
        else type(found) is type(value) and found == value
        for found, value in ((reply[name], value) for name, value in expected.items())
    )


@pytest.mark.parametrize("public", [False, None], ids=["segmind_public false", "segmind_public absent"])
def test_details_and_list_have_the_values_of_the_page(api: Api, *, public: bool | None) -> None:
    dataset = api.upload()
    job = api.trained(data_source_path=dataset, segmind_public=public)
    [item] = api.list()
    assert as_on_the_page(job, DETAILS, dataset), job
    assert as_on_the_page(item, ITEM, dataset), item


def run_curl(*arguments: str) -> str:
    """What curl prints. Fails on an error status."""
    command = [str(curl()), "--silent", "--show-error", "--fail-with-body", "--noproxy", "*", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def key(sandbox: LiveSandbox) -> str:
    return f"x-api-key: {sandbox.api_key}"


def upload_by_curl(sandbox: LiveSandbox, key: str, folder: Path) -> str:
    dataset = folder / "your_dataset.zip"
    dataset.write_bytes(zip_bytes(data=b"x" * 2_000_000))  # large enough for curl to send Expect: 100-continue
    links = json.loads(
        run_curl(
            "--location", "--request", "GET", f"{sandbox.base_url}{FINETUNE}/upload/pre-signed-url",
            "--header", key, "--header", "Content-Type: application/json",
            "--data", '{\n    "name": "NAME_OF_THE_FILE",\n    "extension": ".zip",\n    "public": true\n}',
        )
    )  # fmt: skip
    assert set(links) == {"presigned_url", "s3_url"}
    assert links["presigned_url"].startswith(links["s3_url"] + "?X-Amz-Algorithm=")
    assert links["s3_url"].endswith("-NAME_OF_THE_FILE.zip")
    run_curl(
        "-X", "PUT", "-T", str(dataset), "-H", "Content-Type: application/zip", "-H", "x-amz-acl: public-read",
        links["presigned_url"],
    )  # fmt: skip
    return str(links["s3_url"])


@needs_curl
def test_a_job_from_upload_to_weights(sandbox: LiveSandbox, api: Api, key: str, tmp_path: Path) -> None:
    dataset = upload_by_curl(sandbox, key, tmp_path)

    submitted = json.loads(
        run_curl(
            "--location", f"{sandbox.base_url}{FINETUNE}/submit",
            "--header", key, "--header", "Content-Type: application/json",
            "--data", json.dumps(submit_body(data_source_path=dataset), indent=4),
        )
    )  # fmt: skip
    finetune_id = submitted["finetune_id"]
    assert submitted == {"status": "REQUESTED", "finetune_id": finetune_id, "name": "fastfluxtest1"}

    api.wait_for(finetune_id, "AVAILABLE")
    job = json.loads(
        run_curl(
            "--location", "--request", "GET", f"{sandbox.base_url}{FINETUNE}/details",
            "--header", key, "--header", "Content-Type: application/json",
            "--data", f'{{\n    "request_id": "{finetune_id}"\n}}',
        )
    )["finetune"]  # fmt: skip
    assert job["status"] == "AVAILABLE"

    listed = json.loads(run_curl("--location", f"{sandbox.base_url}{FINETUNE}/list", "--header", key))
    assert [item["finetune_id"] for item in listed] == [finetune_id]

    target = tmp_path / "model.safetensors"
    run_curl("-L", job["cloud_storage_url"], "-o", str(target))
    assert target.stat().st_size == sandbox.settings.weights_bytes


@needs_curl
@pytest.mark.parametrize("quote", ['"', ""], ids=["as in the sample", "bare"])
def test_access_update_by_form(api: Api, sandbox: LiveSandbox, key: str, quote: str) -> None:
    finetune_id = api.submit()

    reply = run_curl(
        "--location", "--request", "PUT", f"{sandbox.base_url}{FINETUNE}/access-update", "--header", key,
        "--form", f"request_id={quote}{finetune_id}{quote}", "--form", f"segmind_public={quote}True{quote}",
    )  # fmt: skip

    assert reply == "200"
    assert api.details(finetune_id)["public_model"] is True
