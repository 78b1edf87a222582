"""``finetune gateway``: a server as a process of its own, and tokens."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from finetune_queue.cli.output import ExitCode
from finetune_queue.contract.request import ACCOUNT_RULE
from finetune_queue.gateway.clients import token_hash
from finetune_queue.settings import load_settings
from support.cli import Program, Run
from support.samples import sample


def test_it_says_where_it_listens_serves_and_ends_on_ctrl_c(queue_url: str) -> None:
    with Program("gateway", "--port", "0", FINETUNE_REDIS_URL=queue_url) as gateway:
        url = gateway.expect("Listening on ").split()[-1]
        assert httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
        assert httpx.post(f"{url}/v1/jobs", json=sample(), trust_env=False).status_code == 202
        gateway.interrupt()
        ended = gateway.end()
    assert ended.code == 0
    lines = [json.loads(line) for line in ended.err.splitlines()]
    assert [line["route"] for line in lines if line["event"] == "http_request"] == ["/v1/jobs"]


def test_it_ends_on_sigterm_with_its_streams(queue_url: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "finetune_queue.cli", "gateway", "--port", "0"]
    env = {**os.environ, "FINETUNE_REDIS_URL": queue_url}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env) as gateway:
        assert gateway.stdout is not None
        url = gateway.stdout.readline().split()[-1]
        with httpx.stream("GET", f"{url}/v1/stream", trust_env=False) as reply:
            assert reply.status_code == 200
            gateway.send_signal(signal.SIGTERM)
            assert gateway.wait(30) == 0
            reply.read()  # it has a whole end: what had to be cut off would raise


def test_a_port_that_is_taken_is_said(run: Run, queue_url: str) -> None:
    with Program("gateway", "--port", "0", FINETUNE_REDIS_URL=queue_url) as gateway:
        port = gateway.expect("Listening on ").strip().rpartition(":")[2]
        result = run("gateway", "--port", port)
    assert result.code == 2
    assert f"Port {port} of 127.0.0.1 is in use. Stop what listens there, or choose another" in result.err


def test_without_tokens_it_does_not_listen_for_others(run: Run, queue_url: str) -> None:
    result = run("gateway", "--host", "0.0.0.0", "--port", "0")
    assert result.code == 6
    assert "FINETUNE_GATEWAY_TOKENS: missing" in result.err


def test_a_token_is_made_with_the_setting_that_knows_it(
    run: Run, queue_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_GATEWAY_TOKENS", json.dumps({"first": token_hash("x")}))
    made = run("gateway", "token", "second", "--json").json
    assert made["sha256"] == token_hash(made["token"])
    said = run("gateway", "token", "third").out
    setting = next(line for line in said.splitlines() if "FINETUNE_GATEWAY_TOKENS=" in line).strip()
    tokens = load_settings({"FINETUNE_GATEWAY_TOKENS": setting.partition("=")[2].strip("'")}).finetune_gateway_tokens
    assert tokens.keys() == {"first", "third"}
    assert tokens["third"] == token_hash(next(line.strip() for line in said.splitlines() if "ftq_" in line))


@pytest.mark.parametrize("name", ["two words", "", "x" * 64, "_x"])
def test_a_client_s_name_is_checked(run: Run, queue_url: str, name: str) -> None:
    refused = run("gateway", "token", name)
    assert refused.code == ExitCode.USAGE
    assert refused.err == f"error: NAME {ACCOUNT_RULE}.\n"
