"""``finetune sandbox``: the Segmind emulator, with its own options."""

import sys

from finetune_queue.cli import output
from finetune_queue.cli.output import CliError, ExitCode


def sandbox(arguments: list[str]) -> ExitCode:
    """Run it until Ctrl-C. Its line of JSON on standard output says where it is and which keys it takes.

    Raises:
        CliError: it is not installed, or refused its options.
    """
    try:
        from segmind_sandbox.__main__ import main
    except ImportError as error:
        raise output.not_installed("The sandbox", error, "sandbox") from None
    if sys.stderr.isatty() and not {"-h", "--help"} & set(arguments):
        output.errors().print(
            "Ready when it prints its address. Then set SEGMIND_BASE_URL and SEGMIND_API_KEY to what it says. "
            "Ctrl-C ends it.",
            style="dim",
            soft_wrap=True,
        )
    try:
        main(arguments)
    except SystemExit as end:  # argparse's way: 0 after --help, 2 or a text after a wrong option
        if isinstance(end.code, str):
            raise CliError(end.code, ExitCode.USAGE, "usage") from None
        return ExitCode.OK if not end.code else ExitCode.USAGE
    return ExitCode.OK
