"""What tests of histories in a time of their own share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.world import World


@pytest.fixture
def world(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(redis_url, tmp_path)
    made.open(monkeypatch)
    yield made
    made.close()
