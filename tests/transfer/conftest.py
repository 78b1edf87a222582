"""A bucket with one object, the server in front of it, and the part that it is downloaded to; a file to be uploaded,
and the storage that takes it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from transfer.bucket import Bucket
from transfer.uploads import CONTENT, Storage
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


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "data.zip"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def storage() -> Storage:
    return Storage()
