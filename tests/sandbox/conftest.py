"""One live sandbox for each test process, put back to its start before each test."""

import os
from collections.abc import Iterator

import pytest

from sandbox.calls import Api
from segmind_sandbox.settings import SandboxSettings
from segmind_sandbox.testing import LiveSandbox, run_sandbox

# At import, before any fixture: a developer's own sandbox must not change these.
for _name in [name for name in os.environ if name.upper().startswith("SANDBOX_")]:
    del os.environ[_name]

OTHER_KEY = "other-key"


@pytest.fixture(scope="session")
def _live() -> Iterator[LiveSandbox]:
    settings = SandboxSettings(
        api_keys={"first-key": None, OTHER_KEY: None},
        rate_limit="100000/60",
        training_seconds=0.3,
        deploy_seconds=0.2,
        weights_bytes=65536,
    )
    with run_sandbox(settings) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(_live: LiveSandbox) -> LiveSandbox:
    """A sandbox that has seen nothing yet, with a high limit and trainings of half a second."""
    _live.control.reset()
    return _live


@pytest.fixture
def api(sandbox: LiveSandbox) -> Iterator[Api]:
    """The calls of the first account."""
    calls = Api(sandbox)
    yield calls
    calls.close()


@pytest.fixture
def other(sandbox: LiveSandbox) -> Iterator[Api]:
    """The calls of another account."""
    calls = Api(sandbox, OTHER_KEY)
    yield calls
    calls.close()
