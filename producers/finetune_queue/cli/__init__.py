"""The command line, ``finetune``. Everything heavy is imported by the command that needs it."""

import io
import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code, see :class:`~finetune_queue.cli.output.ExitCode`."""
    from finetune_queue.cli.app import run

    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by who called; its number, too, would go to the next thing opened
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - for good
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A name may have characters that the terminal's or the log's encoding lacks; no command may fail over that.
            stream.reconfigure(errors="backslashreplace")
    return run(list(sys.argv[1:] if arguments is None else arguments))
