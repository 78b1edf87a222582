"""The whole system starts, works on its own settings only, and leaves nothing running."""

import os
import signal
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from pydantic import SecretStr

from finetune_queue.gateway.hook_paths import hook_path
from finetune_queue.local.processes import Child, ProcessError
from finetune_queue.local.stack import LocalStack, _is_healthy
from finetune_queue.place_url import read_place
from finetune_queue.settings import load_settings


def _runs(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.fixture
def real_account(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's machine behind a proxy, with the key of a real account in the environment and in `.env`."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("SEGMIND_API_KEY", "SG_real_account")
    monkeypatch.setenv("SANDBOX_PORT", "not-a-port")
    Path(".env").write_text("SEGMIND_ACCOUNTS={}\nFINETUNE_REDIS_URL=redis://real-server/0\n")


@pytest.mark.usefixtures("real_account")
def test_it_runs_on_settings_of_its_own_and_ends_what_it_started(tmp_path: Path) -> None:
    with LocalStack(tmp_path / "my stack%20", workers=0, rate_limit="5/1") as stack:
        with redis.Redis.from_url(stack.valkey.url, socket_timeout=5) as client:
            assert client.ping()
        assert _is_healthy(f"{stack.sandbox_url}/_sandbox/health")
        settings = stack.settings
        assert settings.finetune_redis_url == stack.valkey.url
        assert settings.accounts == {}, "a producer needs no key"
        assert read_place(settings.finetune_staging_url) == stack.folder / "staging"
        assert read_place(settings.finetune_artifact_url) == stack.folder / "artifacts"
        assert " " not in settings.finetune_staging_url, "make up prints it for a shell"
        worker = load_settings(stack.worker_env, worker=True)
        assert worker.segmind_base_url == stack.sandbox_url
        assert worker.segmind_is_loopback
        assert str(worker.accounts["default"].rate_limit) == "5/1"
        children = stack.children
        assert [child.name for child in children] == ["Valkey", "sandbox"]
        for child in children:
            assert b"SG_real_account" not in Path(f"/proc/{child.pid}/environ").read_bytes()
        pids = [child.pid for child in children]
    assert not any(map(_runs, pids))


def test_a_part_that_cannot_start_is_named_and_the_others_are_ended(tmp_path: Path) -> None:
    stack = LocalStack(tmp_path, workers=0, sandbox={"SANDBOX_TRAINING_SECONDS": "long"})
    with pytest.raises(ProcessError, match=r"sandbox ended with exit code 1[\s\S]*training_seconds"), stack:
        pytest.fail("it should not start")
    assert not stack.valkey.process.running


def test_a_worker_with_wrong_settings_is_told_what_is_wrong(tmp_path: Path) -> None:
    stack = LocalStack(tmp_path, settings={"FINETUNE_LEASE": "soon"})
    with pytest.raises(ProcessError, match=r"worker1 ended [\s\S]*FINETUNE_LEASE \(environment\): should be"), stack:
        pytest.fail("it should not start")
    assert not any(child.running for child in stack.children)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Child]:
    env = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    command = [sys.executable, "-m", "finetune_queue.local"]
    with Child("up", command, env=env, cwd=tmp_path, log=tmp_path / "up.log") as child:
        yield child


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_make_up_says_what_is_where_and_ends_on_ctrl_c(up: Child) -> None:
    up.wait_for_line(lambda line: line == "Ctrl-C ends everything.", timeout=60)
    said = dict(line.split(maxsplit=1) for line in up.lines() if line[:1].isupper())
    assert _is_healthy(f"{said['Flower']}/healthcheck")
    assert _is_healthy(f"{said['Gateway'].split()[0]}/readyz")
    assert _is_healthy(f"{said['Sandbox'].split()[0]}/_sandbox/health")
    with redis.Redis.from_url(said["Valkey"], socket_timeout=5) as client:
        assert client.ping()
    assert "  export SEGMIND_API_KEY=sandbox-key" in up.lines()
    [secret] = [line.partition("=")[2] for line in up.lines() if line.startswith("  export FINETUNE_HOOK_SECRET=")]
    hook = urllib.request.Request(said["Gateway"].split()[0] + hook_path(SecretStr(secret), "default"), b"{}")
    with urllib.request.urlopen(hook, timeout=5) as reply:
        assert reply.status == 202
    children = _children(up.pid)
    assert len(children) == 5
    up.send_signal(signal.SIGINT)
    assert up.wait(timeout=30) == 0
    assert up.lines()[-1].startswith("Stopped.")
    assert not any(map(_runs, children))


def test_make_up_where_nothing_can_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "var").touch()
    with Child(
        "up", [sys.executable, "-m", "finetune_queue.local"], env={**os.environ}, cwd=tmp_path, log=tmp_path / "up.log"
    ) as up:
        assert up.wait(timeout=30) == 1
        assert [line.partition(":")[0] for line in up.lines()] == ["[Errno 20] Not a directory"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_make_up_starts_a_worker_again_that_was_killed_and_ends_when_another_part_does(up: Child) -> None:
    up.wait_for_line(lambda line: line == "Ctrl-C ends everything.", timeout=60)
    before = _children(up.pid)
    os.kill(_child_with(up.pid, "worker"), signal.SIGKILL)
    up.wait_for_line(lambda line: line.startswith("worker1 was killed. Starting it again"), timeout=30)
    up.wait_until(lambda: len([line for line in up.lines() if "dispatcher_started" in line]) == 2, timeout=60)
    children = _children(up.pid)
    assert len(children) == len(before)

    os.kill(_child_with(up.pid, "segmind_sandbox"), signal.SIGKILL)
    assert up.wait(timeout=30) == 1
    said = up.lines()
    assert any("sandbox was killed by SIGKILL" in line for line in said), said
    assert not any(map(_runs, children))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_make_up_ends_what_it_has_started_so_far_on_a_signal_during_the_start(up: Child) -> None:
    up.wait_until(lambda: len(_children(up.pid)) >= 2, timeout=60)
    children = _children(up.pid)
    up.send_signal(signal.SIGTERM)
    assert up.wait(timeout=30) == 0
    [said] = up.lines()
    assert said.startswith("Stopped.")
    assert not any(map(_runs, children))


def _children(parent: int) -> list[int]:
    """The ids of a process's children, in no order: ids wrap around, so the highest need not be the youngest."""
    return [int(stat.parent.name) for stat in Path("/proc").glob("[0-9]*/stat") if _parent(stat) == parent]


def _parent(stat: Path) -> int | None:
    try:
        return int(stat.read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):  # some other process, which ended meanwhile
        return None


def _child_with(parent: int, argument: str) -> int:
    """The one child that has `argument` in its command line."""
    [child] = [pid for pid in _children(parent) if argument in Path(f"/proc/{pid}/cmdline").read_text().split("\0")]
    return child
