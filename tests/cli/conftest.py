"""The command line run in this process, on a real Valkey, with jobs written by the store as workers would."""

import logging
import warnings
from collections.abc import Iterator

import pytest
import structlog

from finetune_queue.cli import main
from finetune_queue.store import connect
from support.cli import Result, Run, Worker


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run ``finetune`` with the given arguments; logging is given back as it was."""
    root = logging.getLogger()
    handlers, level, showwarning = root.handlers[:], root.level, warnings.showwarning

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return Result(int(code), said.out, said.err)

    yield run
    root.handlers = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    warnings.showwarning = showwarning
    structlog.reset_defaults()


@pytest.fixture
def queue_url(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty queue that the command line uses."""
    monkeypatch.setenv("FINETUNE_REDIS_URL", redis_url)
    return redis_url


@pytest.fixture
def worker(queue_url: str) -> Iterator[Worker]:
    with connect(queue_url) as client:
        yield Worker(client)
