"""The options that several commands have."""

import math
from typing import Annotated

import typer


def _check_seconds(seconds: float | None) -> float | None:
    if seconds is not None and not (math.isfinite(seconds) and seconds >= 0):
        raise typer.BadParameter("should be a number of seconds, 0 or more")
    return seconds


AsJson = Annotated[bool, typer.Option("--json", metavar="", help="Print JSON for programs, and nothing else.")]
Timeout = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", callback=_check_seconds, help="Stop waiting after this time. The job goes on."),
]
