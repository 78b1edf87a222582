"""Logging is the process's own: each test gets it back as it was."""

import io
import json
from collections.abc import Callable
from typing import Any

import pytest

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
def configured() -> Callable[..., Logs]:
    """Set the pipeline up with these variables as settings and return what it writes.

    Called in the test, not before it: only then are pytest's own handlers there to be replaced.
    """

    def configure(**variables: str) -> Logs:
        stream = io.StringIO()
        configure_logging(load_settings(variables), stream=stream)
        return Logs(stream)

    return configure
