"""The Lua scripts, each in a file of its own, registered once for a connection.

Redis writes a script's whole numbers in full, so none is formatted there.
"""

from importlib.resources import files
from typing import Any, Protocol

import redis


class Script(Protocol):
    """A registered script: runs by its hash, and sends its text again if the server forgot it."""

    def __call__(self, keys: list[str], args: list[Any], client: "redis.client.Pipeline | None" = None) -> Any: ...


def load(client: "redis.Redis", name: str) -> Script:
    """Return the script of ``lua/<name>.lua`` for this client. Nothing is sent until it runs."""
    text = files(__package__).joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")
    script: Script = client.register_script(text)
    return script
