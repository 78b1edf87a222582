"""A bucket with one object, the server in front of it, and the part that it is downloaded to."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from transfer.bucket import Bucket
from wire.rawserver import RawServer


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


@pytest.fixture
def server(bucket: Bucket) -> Iterator[RawServer]:
    with RawServer(bucket.talk) as server:
        yield server


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "w.part"
