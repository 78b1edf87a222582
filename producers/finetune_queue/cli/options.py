"""The options that several commands have."""

import math
from typing import Annotated, Final

import typer

from finetune_queue.cli.output import usage_error


def _check_seconds(seconds: float | None) -> float | None:
    if seconds is not None and not (math.isfinite(seconds) and seconds >= 0):
        raise typer.BadParameter("should be a number of seconds, 0 or more")
    return seconds


def public_or_private(*, public: bool, private: bool) -> bool | None:
    """Return whether the model is to be public, None if neither is given. In one option with two names the
    last would silently win, and who may use a model is too important for that.

    Raises:
        CliError: both are given.
    """
    if public and private:
        raise usage_error("Say either --public or --private.")
    return public if public or private else None


# That of `finetune_queue.contract`, which would load pydantic to read a command line.
DEFAULT_ACCOUNT: Final = "default"

AsJson = Annotated[bool, typer.Option("--json", metavar="", help="Print JSON for programs, and nothing else.")]
Timeout = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", callback=_check_seconds, help="Stop waiting after this time. The job goes on."),
]
Public = Annotated[bool, typer.Option("--public", metavar="", help="Anybody may use the model at Segmind.")]
Private = Annotated[bool, typer.Option("--private", metavar="", help="Only the account may use it.")]
