"""``finetune gateway``: the HTTP gateway, and the tokens of its clients."""

import errno
import json
import re

from finetune_queue.cli import output
from finetune_queue.cli.output import CliError, ExitCode
from finetune_queue.contract.request import ACCOUNT_NAME, ACCOUNT_RULE
from finetune_queue.settings import load_settings


def gateway(host: str, port: int) -> ExitCode:
    """Serve until Ctrl-C or SIGTERM. The first line of standard output says where; the logs go to standard error.

    Raises:
        SettingsError, CliError: it cannot be served there, or is not installed.
    """
    from finetune_queue import tracing
    from finetune_queue.logs import configure_logging

    settings = load_settings()
    configure_logging(settings)
    try:
        from finetune_queue.gateway.server import GatewayServer
    except ImportError as error:
        raise output.not_installed("The gateway", error, "gateway") from None
    try:
        server = GatewayServer(settings, host, port)
    except OSError as error:
        raise CliError(_deaf(host, port, error), ExitCode.USAGE, "cannot_listen") from None
    output.say(f"Listening on {server.url}")
    with tracing.running("finetune-gateway"):
        server.run_until_stopped()
    return ExitCode.OK


def token(name: str, *, as_json: bool) -> ExitCode:
    """Make a token for a client and print it, once, with its hash for the gateway's settings.

    Raises:
        SettingsError, CliError: the settings are wrong, or the gateway is not installed.
    """
    try:
        from finetune_queue.gateway.clients import new_token, token_hash
    except ImportError as error:
        raise output.not_installed("The gateway", error, "gateway") from None

    if re.fullmatch(ACCOUNT_NAME, name) is None:
        raise output.usage_error(f"NAME {ACCOUNT_RULE}.")
    secret = new_token()
    tokens = {**load_settings().finetune_gateway_tokens, name: token_hash(secret)}
    value = json.dumps(tokens)
    if as_json:
        output.emit({"name": name, "token": secret, "sha256": tokens[name]})
        return ExitCode.OK
    output.say(f"Token for {name} (shown once, stored nowhere):\n\n  {secret}\n")
    output.say(f"The gateway's setting, with its hash:\n\n  FINETUNE_GATEWAY_TOKENS='{value}'")
    return ExitCode.OK


def _deaf(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        command = f"{output.program()} gateway --port N"
        return (
            f"Port {port} of {host} is in use. Stop what listens there, or choose another: {command} (0: a free one)."
        )
    why = str(error.strerror).partition(" (while ")[0]  # socket's own words of where it was
    return f"Cannot listen on {host}:{port}: {why}. --host and --port choose where."
