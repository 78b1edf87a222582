"""What tests of histories in a time of their own share, and those of kombu as the worker has it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kombu.transport import redis as transport

from finetune_worker.broker import patch_kombu
from support.world import World


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
