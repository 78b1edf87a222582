"""What tests of crashes, of trouble under real workers, and of histories in a time of their own share."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kombu.transport import redis as transport

from finetune_queue.local.stack import LocalStack
from finetune_worker.broker import patch_kombu
from segmind_sandbox.settings import SandboxSettings
from segmind_sandbox.testing import LiveSandbox, SandboxControl, run_sandbox
from support.hard_times import HardTimes
from support.images import make_dataset_folder
from support.world import World


@pytest.fixture(scope="module")
def sandbox() -> Iterator[LiveSandbox]:
    settings = SandboxSettings(rate_limit="10000/1", training_seconds=0, deploy_seconds=0, weights_bytes=8192)
    with run_sandbox(settings) as running:
        yield running


@pytest.fixture(scope="module")
def times(stack: LocalStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HardTimes]:
    """Jobs in a module's own ``stack``."""
    control = SandboxControl(stack.sandbox_url)
    found = HardTimes(stack, control, make_dataset_folder(tmp_path_factory.mktemp("images"), count=4))
    yield found
    found.close()
    control.close()


@pytest.fixture
def world(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(redis_url, tmp_path)
    made.open(monkeypatch)
    yield made
    made.close()


@pytest.fixture
def mended(monkeypatch: pytest.MonkeyPatch) -> None:
    kombu: Any = transport
    for of, name in [
        *((kombu.Channel, name) for name in ("QoS", "_connparams", "_create_client")),
        *((kombu.Transport, "_deliver"), (kombu, "loads")),
    ]:
        monkeypatch.setattr(of, name, getattr(of, name))  # put back after the test
    patch_kombu()
