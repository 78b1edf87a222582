"""The sandbox as a program, its control API, and its behaviour under load."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests

from sandbox.calls import FINETUNE, TIMEOUT, Api, put, submit_body
from segmind_sandbox.__main__ import main
from segmind_sandbox.settings import SandboxSettings
from segmind_sandbox.testing import LiveSandbox, SandboxControl, run_sandbox
from support.until import until


@contextmanager
def program(*flags: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A sandbox in a process of its own, and the line that it printed."""
    command = [sys.executable, "-m", "segmind_sandbox", *flags]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
    ) as process:
        try:
            assert process.stdout
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


def memory(process: subprocess.Popen[str]) -> int:
    """The most memory that the process has had, in bytes."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def test_one_line_says_where_it_is_and_which_keys_it_takes(tmp_path: Path) -> None:
    flags = ["--api-keys", '{"a": null, "b": "5/60"}', "--weights-bytes", "65536", "--no-retry-after"]
    with program(*flags, SANDBOX_TRAINING_SECONDS="0", TMPDIR=str(tmp_path)) as (process, ready):
        assert set(ready) == {"base_url", "api_keys"}
        assert ready["api_keys"] == ["a", "b"]
        base_url = ready["base_url"]
        assert requests.get(f"{base_url}/_sandbox/health", timeout=TIMEOUT).json() == {"status": "ok"}
        headers = {"x-api-key": "b"}
        assert requests.get(f"{base_url}{FINETUNE}/list", headers=headers, timeout=TIMEOUT).json() == []
        control = SandboxControl(base_url)
        assert control.report()["calls"] == {"list": {"200": 1}}
        control.close()
        assert list(tmp_path.glob("segmind-sandbox-*"))

        process.send_signal(signal.SIGTERM)
        process.wait(TIMEOUT)

        assert not list(tmp_path.glob("segmind-sandbox-*"))
        assert process.stderr
        assert process.stderr.read() == ""


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--training-seconds", "-1"], "training_seconds"),
        (["--rate-limit", "fast"], "CALLS/SECONDS"),
        (["--faults", '[{"op": "submit", "kind": "explode"}]'], "faults.0"),
        (["--host", "192.0.2.1"], "cannot listen on 192.0.2.1"),
    ],
)
def test_wrong_settings_end_in_a_sentence(flags: list[str], sentence: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(flags)
    assert sentence in str(end.value.code)


def test_memory_is_flat_with_large_files(tmp_path: Path) -> None:
    size = 128 << 20
    upload = tmp_path / "large.zip"
    with upload.open("wb") as file:
        file.truncate(90 << 20)
    flags = ["--weights-bytes", str(size), "--training-seconds", "0", "--deploy-seconds", "0"]
    with program(*flags) as (process, ready):
        sandbox = LiveSandbox(ready["base_url"], SandboxSettings(), SandboxControl(ready["base_url"]))
        api = Api(sandbox)
        url = api.wait_for(api.submit(), "AVAILABLE")["cloud_storage_url"]
        requests.head(url, timeout=TIMEOUT)  # by then it is hashed
        before = memory(process)

        with requests.get(url, stream=True, timeout=TIMEOUT) as reply:
            assert sum(len(chunk) for chunk in reply.iter_content(1 << 20)) == size
        with upload.open("rb") as file:
            assert put(api.presign()["presigned_url"], file).status_code == 200

        assert memory(process) - before < 8 << 20
        api.close()
        sandbox.control.close()


def test_a_slow_reader_does_not_stop_others(api: Api, sandbox: LiveSandbox) -> None:
    sandbox.control.change_settings(weights_bytes=64 << 20)
    url = api.trained()["cloud_storage_url"]
    with requests.get(url, stream=True, timeout=TIMEOUT) as unread:
        assert api.credits().status_code == 200
        assert unread.status_code == 200
    until(lambda: api.credits(timeout=1).status_code == 200, seconds=30)


def test_many_jobs_are_listed_at_once(api: Api) -> None:
    body = submit_body(data_source_path="http://127.0.0.1:9/nothing.zip")
    for number in range(150):
        reply = api.call("POST", f"{FINETUNE}/submit", json=body | {"name": f"job-{number}"})
        assert reply.status_code == 200
    assert [item["name"] for item in api.list()] == [f"job-{number}" for number in reversed(range(150))]
    until(lambda: {item["status"] for item in api.list()} == {"FAILED"}, seconds=TIMEOUT)


def test_the_report(api: Api, other: Api, sandbox: LiveSandbox) -> None:
    dataset = api.upload()
    api.trained(name="one", data_source_path=dataset)
    other.credits()
    requests.get(f"{sandbox.base_url}/nowhere", timeout=TIMEOUT)

    report = sandbox.control.report()

    assert report["calls"] == {
        "credits": {"200": 1}, "details": {"200": report["calls"]["details"]["200"]}, "presign": {"200": 1},
        "put": {"200": 1}, "submit": {"200": 1}, "unknown": {"404": 1},
    }  # fmt: skip
    assert report["submits"] == {"total": 1, "by_name": {"one": 1}, "by_data_source_path": {dataset: 1}}
    assert report["trainings"] == {"total": 1, "failed": 0, "by_status": {"AVAILABLE": 1}}
    assert report["objects"] == 1
    assert report["accounts"]["account-2"] == {
        "window_seconds": 60.0, "calls": 1, "rejected": 0, "most_calls_in_window": 1, "most_admitted_in_window": 1,
    }  # fmt: skip
    assert sandbox.api_key not in json.dumps(report)


def test_reset_forgets_everything(api: Api, sandbox: LiveSandbox) -> None:
    url = api.trained()["cloud_storage_url"]
    sandbox.control.change_settings(rate_limit="1/60", training_seconds=99)
    sandbox.control.add_fault(op="credits", kind="reset")

    sandbox.control.reset()

    report = sandbox.control.report()
    assert (report["calls"], report["submits"]["total"], report["objects"]) == ({}, 0, 0)
    assert api.list() == []
    assert requests.get(url, timeout=TIMEOUT).status_code == 404
    assert [api.credits().status_code for _ in range(2)] == [200, 200]
    api.wait_for(api.submit(), "AVAILABLE")


def test_a_call_that_waits_is_given_up_by_a_reset(api: Api, sandbox: LiveSandbox) -> None:
    sandbox.control.add_fault(op="submit", kind="slow", seconds=30)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(api.call, "POST", f"{FINETUNE}/submit", json=submit_body(), timeout=60)
        until(lambda: sandbox.control.report()["faults"] == {"slow": 1}, seconds=TIMEOUT)
        sandbox.control.reset()
        assert isinstance(call.exception(TIMEOUT), requests.ConnectionError)
    assert api.list() == []


def test_parts_can_be_reset(api: Api, sandbox: LiveSandbox) -> None:
    api.submit()
    sandbox.control.reset("report")
    assert sandbox.control.report()["calls"] == {}
    assert len(api.list()) == 1
    sandbox.control.change_settings(rate_limit="1/60")
    assert [api.credits().status_code for _ in range(2)] == [200, 429]
    sandbox.control.reset("limits")
    assert api.credits().status_code == 200


def test_wrong_control_calls_are_refused(sandbox: LiveSandbox) -> None:
    control = sandbox.control
    with pytest.raises(httpx.HTTPStatusError):
        control.report(window=-1)
    with pytest.raises(httpx.HTTPStatusError):
        control.change_settings(training_secs=1)
    with pytest.raises(httpx.HTTPStatusError):
        control.change_settings(weights_bytes=5)
    with pytest.raises(httpx.HTTPStatusError):
        control.change_training("unknown", hold=True)
    with pytest.raises(httpx.HTTPStatusError):
        control.reset("world")
    with pytest.raises(httpx.HTTPStatusError):
        control.test_webhook("unknown")


def test_a_sandbox_ends_while_a_fault_waits() -> None:
    with run_sandbox() as sandbox:
        api = Api(sandbox)
        sandbox.control.add_fault(op="credits", kind="slow", seconds=60)
        with pytest.raises(requests.ReadTimeout):
            api.credits(timeout=0.1)
        api.close()
