"""The commands of the HTTP gateway and of Segmind's webhooks, and their options."""

from typing import Annotated

import typer

from finetune_queue.cli.output import ExitCode

gateway = typer.Typer()

AsJson = Annotated[bool, typer.Option("--json", metavar="", help="Print JSON for programs, and nothing else.")]


@gateway.callback(invoke_without_command=True)
def serve(
    context: typer.Context,
    *,
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="N", min=0, max=65535, help="0 takes a free one.")] = 8080,
) -> ExitCode | None:
    """Serve the queue over HTTP, with a page for people, until Ctrl-C."""
    if context.invoked_subcommand is not None:
        return None
    from finetune_queue.cli.gateway import gateway as command

    return command(host, port)


@gateway.command()
def token(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The client's name, for logs.", show_default=False)],
    *,
    as_json: AsJson = False,
) -> ExitCode:
    """Make a client's token, and its hash for FINETUNE_GATEWAY_TOKENS."""
    from finetune_queue.cli.gateway import token as command

    return command(name, as_json=as_json)
