"""``python -m segmind_sandbox``: run the sandbox until Ctrl-C or SIGTERM.

When it is ready, one line of JSON goes to standard output: its base URL and the API keys that it accepts.
"""

from __future__ import annotations

import asyncio
import json
import sys

from pydantic import ValidationError

from segmind_sandbox.server import SandboxServer
from segmind_sandbox.settings import SandboxSettings


def main(arguments: list[str] | None = None) -> None:
    """Read the flags, serve, and end without a traceback on Ctrl-C."""
    try:
        settings = SandboxSettings(
            _cli_parse_args=sys.argv[1:] if arguments is None else arguments,
            _cli_kebab_case=True,
            _cli_implicit_flags=True,
            _cli_prog_name="python -m segmind_sandbox",
        )
    except ValidationError as error:
        findings = [f"{'.'.join(map(str, found['loc']))}: {found['msg']}" for found in error.errors()]
        sys.exit("wrong settings: " + "; ".join(findings))
    try:
        server = SandboxServer(settings, on_ready=lambda: _say_ready(server))
        asyncio.run(server.serve([server.socket]))
    except OSError as error:
        sys.exit(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}")
    except KeyboardInterrupt:
        return


def _say_ready(server: SandboxServer) -> None:
    ready = {"base_url": server.base_url, "api_keys": list(server.settings.api_keys)}
    sys.stdout.write(json.dumps(ready) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
