"""Places of every kind. `CLOUDS="gs az"` adds those whose drivers and emulators `make clouds-test` installs."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from finetune_queue.storage import Place, drivers
from support.clouds import CLOUDS, Store, emulator, environment

collect_ignore = [] if CLOUDS else ["test_clouds.py"]


@pytest.fixture(scope="session")
def endpoints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The emulators by scheme, each started once for a process that runs tests."""
    with ExitStack() as stack:
        yield {scheme: stack.enter_context(emulator(scheme, tmp_path_factory.mktemp(scheme))) for scheme in CLOUDS}


@pytest.fixture
def make_store(
    request: pytest.FixtureRequest, filesystems: dict[tuple[int, str], Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Store]:
    """Makes a bucket in the store of a scheme, with the environment set as a worker's would be."""

    def make(scheme: str) -> Store:
        monkeypatch.setattr(drivers, "_filesystems", filesystems)
        origin = request.getfixturevalue("s3_server" if scheme == "s3" else "endpoints")
        for name, value in environment(scheme, origin if scheme == "s3" else origin[scheme]).items():
            monkeypatch.setenv(name, value)
        return Store(scheme)

    return make


@pytest.fixture(params=["s3", *CLOUDS])
def scheme(request: pytest.FixtureRequest) -> str:
    """Every scheme of an object store."""
    return str(request.param)


@pytest.fixture
def store(scheme: str, make_store: Callable[[str], Store]) -> Store:
    return make_store(scheme)


@pytest.fixture(params=["file", "s3", *CLOUDS])
def place(request: pytest.FixtureRequest, tmp_path: Path, make_store: Callable[[str], Store]) -> Place:
    """The same tests for every kind of place."""
    if request.param == "file":
        return Place(f"file://{tmp_path}/store")
    return Place(f"{make_store(request.param).url}/some/prefix")


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """A file to be stored."""
    path = tmp_path / "weights.bin"
    path.write_bytes(b"x" * 3_000_000)
    return path
