"""The command line run in this process, on a real Valkey, with jobs written by the store as workers would."""

from collections.abc import Iterator

import pytest
import redis

from finetune_queue import __version__
from finetune_queue.cli import main
from finetune_queue.store import LiveWorker, Workers, connect
from gateway.serving import HOOK_SECRET
from segmind_sandbox.settings import SandboxSettings
from segmind_sandbox.testing import LiveSandbox, run_sandbox
from support.cli import Result, Run, Worker


@pytest.fixture(autouse=True)
def _short_ping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give workers, of which most tests have none, little time to answer the doctor."""
    monkeypatch.setattr("finetune_queue.cli.doctor.PING_SECONDS", 0.1)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run ``finetune`` with the given arguments."""

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return Result(int(code), said.out, said.err)

    return run


@pytest.fixture
def queue_url(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty queue that the command line uses."""
    monkeypatch.setenv("FINETUNE_REDIS_URL", redis_url)
    return redis_url


@pytest.fixture
def client(queue_url: str) -> Iterator[redis.Redis]:
    with connect(queue_url) as connection:
        yield connection


@pytest.fixture
def worker(client: redis.Redis) -> Worker:
    Workers(client).seen(LiveWorker("worker1@here", __version__))
    return Worker(client)


@pytest.fixture(scope="module")
def live_sandbox() -> Iterator[LiveSandbox]:
    with run_sandbox(SandboxSettings()) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(live_sandbox: LiveSandbox, queue_url: str, monkeypatch: pytest.MonkeyPatch) -> LiveSandbox:
    """A sandbox without jobs that the command line uses as its one account, which expects webhooks."""
    live_sandbox.control.reset()
    monkeypatch.setenv("SEGMIND_BASE_URL", live_sandbox.base_url)
    monkeypatch.setenv("SEGMIND_API_KEY", live_sandbox.api_key)
    monkeypatch.setenv("SEGMIND_RATE_LIMIT", "50/60")
    monkeypatch.setenv("FINETUNE_HOOK_SECRET", HOOK_SECRET)
    return live_sandbox
