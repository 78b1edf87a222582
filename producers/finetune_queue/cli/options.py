"""The options that several commands have."""

from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", metavar="", help="Print JSON for programs, and nothing else.")]
Timeout = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", help="Stop waiting after this time. The job goes on."),
]
