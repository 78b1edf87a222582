"""What leaves the program: text for people, JSON for programs, errors and exit codes."""

import errno
import json
import os
import shutil
import sys
from collections.abc import Mapping
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_queue.plain_words import escaped_lines

if TYPE_CHECKING:
    from rich.console import Console


class ExitCode(IntEnum):
    """The exit codes; scripts depend on them. docs/cli.md has the table."""

    OK = 0
    FAILED = 1  # the command worked and its answer is bad: the job failed or was cancelled, a check failed
    USAGE = 2  # wrong options, or a request or dataset that cannot be accepted
    NOT_FOUND = 3
    UNAVAILABLE = 4  # Redis, the staging store, a job's weights, or a part of the demo's own system
    TIMEOUT = 5
    SETTINGS = 6
    CONFLICT = 7  # the job's state, or an idempotency key in use, does not allow it
    MISSING = 8  # a part of the program is not installed
    INTERNAL = 70  # a defect of this program (EX_SOFTWARE of sysexits.h)
    INTERRUPTED = 130


class CliError(Exception):
    """Ends a command that did not do what was asked, with an exit code and a stable ``code``. ``details`` are for the
    JSON form only."""

    def __init__(self, message: str, exit_code: ExitCode, code: str, **details: Any) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.code = code
        self.details = details


def usage_error(message: str) -> CliError:
    """Make the error for options that make no sense together, or values that cannot be read."""
    return CliError(message, ExitCode.USAGE, "usage")


def not_installed(what: str, error: ImportError, extra: str) -> CliError:
    """Make the error for a command whose part of the program only an extra installs."""
    message = f"{what} needs {error.name}, which is not installed: pip install 'finetune-queue[{extra}]'"
    return CliError(message, ExitCode.MISSING, "not_installed")


def explain(error: Exception) -> CliError | None:  # noqa: PLR0912 - one case for each error
    """Return the CliError for an error of the layers below; None for an error that is not expected."""
    # Imported here: nothing but an error needs them, and what raised it has imported most of them already.
    from finetune_queue import errors
    from finetune_queue.datasets.errors import DatasetError
    from finetune_queue.settings import SettingsError

    text = str(error)
    match error:
        case CliError():
            return error
        case SettingsError():
            return CliError(text, ExitCode.SETTINGS, "settings", problems=list(error.problems))
        case errors.InvalidRequestError():
            return CliError(text, ExitCode.USAGE, "invalid_request", problems=error.problems)
        case DatasetError():
            return CliError(text, ExitCode.USAGE, error.code)
        case errors.UnknownJobError():
            return CliError(text, ExitCode.NOT_FOUND, "job_not_found")
        case errors.UnknownAccountNameError():
            return CliError(text, ExitCode.NOT_FOUND, "account_not_found")
        case errors.UnknownLetterError():
            return CliError(text, ExitCode.NOT_FOUND, "dead_letter_not_found")
        case errors.IdempotencyConflictError():
            return CliError(text, ExitCode.CONFLICT, "idempotency_conflict")
        case errors.NotPossibleError():
            return CliError(text, ExitCode.CONFLICT, "not_possible")
        case errors.WaitTimeoutError():
            return CliError(text, ExitCode.TIMEOUT, "timeout")
        case errors.QueueUnavailableError():
            return CliError(text, ExitCode.UNAVAILABLE, "queue_unavailable")
        case errors.StagingUnavailableError():
            return CliError(text, ExitCode.UNAVAILABLE, "staging_unavailable")
        case errors.WeightsUnavailableError():
            return CliError(text, ExitCode.UNAVAILABLE, "weights_unavailable")
        case errors.WeightsDamagedError():
            return CliError(text, ExitCode.FAILED, "weights_damaged")
        case errors.TargetError():
            return CliError(text, ExitCode.USAGE, "target")
        case OSError(errno=errno.ENOSPC):
            # Not the exit code of a refused request: the command may have done its work before it could not say so.
            return CliError(f"Nothing more can be written: {error.strerror}.", ExitCode.FAILED, "no_space")
        case _:
            return None


def report(error: CliError, *, as_json: bool) -> None:
    """Say on standard error what went wrong."""
    _drop_unwritten()
    if as_json:
        body = {"code": error.code, "exit_code": int(error.exit_code), "message": str(error), **error.details}
        sys.stderr.write(json.dumps({"error": body}, default=str) + "\n")
        return
    from rich.text import Text

    label = Text("stopped: " if error.exit_code is ExitCode.INTERRUPTED else "error: ", style="bold red")
    errors().print(label.append(escaped_lines(str(error)), style="not bold default"), soft_wrap=True)


def expected(error: Exception) -> CliError:
    """Return the CliError for an error; an error that is not expected is raised."""
    found = explain(error)
    if found is None:
        raise error
    return found


def refused(error: Exception, *, as_json: bool) -> ExitCode:
    """Report what went wrong with one of several items, so that the command can go on; returns its exit code."""
    failure = expected(error)
    report(failure, as_json=as_json)
    return failure.exit_code


def _drop_unwritten() -> None:
    """Drop what standard output did not take: Python would try to write it again at its end, and exit with 120."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


@cache
def _console(*, stderr: bool) -> "Console":
    from rich.console import Console

    # No guessing at what is a number or a path: only what the program itself styles is coloured.
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def program() -> str:
    """Return how this program is called here: by its name, or by its path where a shell would not find the name."""
    path = Path(sys.argv[0])
    if path.name != "finetune" or shutil.which("finetune") is not None:
        return "finetune"
    try:
        return os.path.relpath(path)
    except FileNotFoundError:  # the current folder was removed
        return str(path)


def out() -> "Console":
    """Return standard output for people."""
    return _console(stderr=False)


def errors() -> "Console":
    """Return standard error for people."""
    return _console(stderr=True)


def say(text: str) -> None:
    """Print one line for people, as long as it is: what reads it may break it."""
    out().print(escaped_lines(text), soft_wrap=True)


def note(text: str) -> None:
    """Say on standard error what is not part of the output, whose lines a program reads as data."""
    errors().print(escaped_lines(text), soft_wrap=True)


def emit(document: Mapping[str, Any] | list[Any]) -> None:
    """Print one JSON document, indented on a terminal and otherwise on one line."""
    indent = 2 if sys.stdout.isatty() else None
    _write(json.dumps(document, indent=indent, default=str))


def emit_line(document: Mapping[str, Any]) -> None:
    """Print one JSON document of a stream, at once, on one line."""
    _write(json.dumps(document, default=str))


def _write(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
