"""The commands of the HTTP gateway and of Segmind's webhooks, and their options."""

from typing import Annotated

import typer

from finetune_queue.cli.options import DEFAULT_ACCOUNT, AsJson, Commands
from finetune_queue.cli.output import ExitCode

gateway = Commands()


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


webhooks = Commands(help="The account's webhook at Segmind, which tells the gateway when a training changes.")

Account = Annotated[str, typer.Option("--account", metavar="NAME", help="Whose webhook.")]
GatewayUrl = Annotated[
    str, typer.Argument(metavar="URL", help="The gateway's address, as Segmind reaches it.", show_default=False)
]


@webhooks.command("url")
def full_url(url: GatewayUrl, *, account: Account = DEFAULT_ACCOUNT, as_json: AsJson = False) -> ExitCode:
    """Print the whole URL, a secret, to register by hand in Segmind's console. Calls nothing."""
    from finetune_queue.cli.webhooks import full_url as command

    return command(url, account, as_json=as_json)


@webhooks.command("list")
def list_(*, account: Account = DEFAULT_ACCOUNT, as_json: AsJson = False) -> ExitCode:
    """List the account's webhooks."""
    from finetune_queue.cli.webhooks import list_webhooks

    return list_webhooks(account, as_json=as_json)


@webhooks.command()
def register(url: GatewayUrl, *, account: Account = DEFAULT_ACCOUNT, as_json: AsJson = False) -> ExitCode:
    """Have Segmind call the gateway. An account has one webhook for fine-tunes."""
    from finetune_queue.cli.webhooks import register as command

    return command(url, account, replace=False, as_json=as_json)


@webhooks.command()
def replace(url: GatewayUrl, *, account: Account = DEFAULT_ACCOUNT, as_json: AsJson = False) -> ExitCode:
    """Have Segmind call the gateway instead of what it calls now."""
    from finetune_queue.cli.webhooks import register as command

    return command(url, account, replace=True, as_json=as_json)


@webhooks.command()
def remove(
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without this it says what would end.")] = False,
    account: Account = DEFAULT_ACCOUNT,
    as_json: AsJson = False,
) -> ExitCode:
    """Have Segmind call nobody any more. Jobs go on without it, by sweeps alone."""
    from finetune_queue.cli.webhooks import remove as command

    return command(account, yes=yes, as_json=as_json)


@webhooks.command("test")
def try_out(*, account: Account = DEFAULT_ACCOUNT, as_json: AsJson = False) -> ExitCode:
    """Call the webhook as Segmind does, and show Segmind's latest deliveries."""
    from finetune_queue.cli.webhooks import try_out as command

    return command(account, as_json=as_json)
