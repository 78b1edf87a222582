"""Logging is the process's own: each test gets it back as it was."""

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from finetune_queue.logs import configure_logging
from finetune_queue.settings import load_settings


class Logs:
    """What was written since the pipeline was set up."""

    def __init__(self, stream: io.StringIO) -> None:
        self._stream = stream

    @property
    def text(self) -> str:
        return self._stream.getvalue()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]

    @property
    def last(self) -> dict[str, Any]:
        return self.lines[-1]


@pytest.fixture
def configured() -> Iterator[Callable[..., Logs]]:
    """Set the pipeline up with these variables as settings and return what it writes.

    Called in the test, not before it: only then are pytest's own handlers there to be replaced.
    """
    root = logging.getLogger()
    level = root.level
    showwarning = warnings.showwarning
    structlog.contextvars.clear_contextvars()  # other tests of this process may have bound some

    def configure(**variables: str) -> Logs:
        stream = io.StringIO()
        configure_logging(load_settings(variables), stream=stream)
        return Logs(stream)

    yield configure
    root.handlers = [handler for handler in root.handlers if type(handler).__module__ != configure_logging.__module__]
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    warnings.showwarning = showwarning
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
