"""JSON Lines: one object on each line, read as a stream, with whatever is wrong told of its line."""

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Self

from finetune_queue.cli.output import CliError, usage_error
from finetune_queue.cli.requests import STDIN, parse_object, unreadable

SUFFIX = ".jsonl"

LONGEST = 256 * 1024
"""Bytes of a line, as of a request over HTTP. A file without line ends must not fill the memory."""


class Lines:
    """A stream of JSON objects, one on each line; empty lines are left out. ``done`` bytes of ``size`` were read, None
    where the size is not known."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.done = 0
        about = os.fstat(stream.fileno())
        self.size = about.st_size if stat.S_ISREG(about.st_mode) else None

    @classmethod
    @contextmanager
    def of(cls, file: str) -> Iterator[Self]:
        """Open a file, or standard input for ``-``.

        Raises:
            CliError: it cannot be read.
        """
        if file == STDIN:
            yield cls(sys.stdin.buffer)
            return
        try:
            stream = open(file, "rb")  # noqa: PTH123, SIM115 - closed below; what is raised later is not ours
        except OSError as error:
            raise unreadable(file, error) from None
        with stream:
            yield cls(stream)

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any] | CliError]]:
        """Yield each line's number, from 1, and its object, or what is wrong with it."""
        number = 0
        while line := self._stream.readline(LONGEST + 1):
            number += 1
            self.done += len(line)
            if len(line) > LONGEST:
                yield number, usage_error(f"the line is longer than {LONGEST:,} bytes.")
                self._skip(line)
            elif line.strip():
                yield number, _parsed(line)

    def _skip(self, line: bytes) -> None:
        while line and not line.endswith(b"\n"):
            line = self._stream.readline(LONGEST)
            self.done += len(line)


def _parsed(line: bytes) -> dict[str, Any] | CliError:
    try:
        return parse_object(line, "the line")
    except CliError as error:
        return error
