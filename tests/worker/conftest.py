"""A worker's parts without Celery's processes: real Valkey, a real sandbox over a socket, stages called one by one."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_queue.messaging import producer_app
from finetune_queue.sdk import FineTuneQueue
from finetune_queue.settings import Settings
from finetune_worker.container import Container
from segmind_sandbox.settings import SandboxSettings
from segmind_sandbox.testing import LiveSandbox, run_sandbox
from support.bench import Bench, make_settings
from support.driver import Driver


@pytest.fixture(scope="session")
def live_sandbox() -> Iterator[LiveSandbox]:
    with run_sandbox(SandboxSettings(training_seconds=0.0, deploy_seconds=600, weights_bytes=65536)) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(live_sandbox: LiveSandbox) -> LiveSandbox:
    live_sandbox.control.reset()
    return live_sandbox


@pytest.fixture
def settings(sandbox: LiveSandbox, redis_url: str, tmp_path: Path) -> Settings:
    return make_settings(sandbox, redis_url, tmp_path)


@pytest.fixture
def container(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Container]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # the worker's folder, of which some tests leave a part
    built = Container.build(settings, producer_app(settings))
    built.presence.announce()
    yield built
    built.close()


@pytest.fixture
def bench(container: Container, sandbox: LiveSandbox) -> Bench:
    return Bench(container, sandbox)


@pytest.fixture
def queue(bench: Bench) -> Iterator[FineTuneQueue]:
    with FineTuneQueue(bench.container.settings) as found:
        yield found


@pytest.fixture
def driver(bench: Bench) -> Driver:
    return Driver(bench.container)
