"""Reading a reply: bounded in size and time, and its error message made safe to show."""

import json
import re
from typing import Any

import requests

from finetune_queue.redaction import redact_text
from finetune_queue.timed_sockets import Deadline
from finetune_worker.wire.urls import without_queries

MAX_JSON = 4 * 1024 * 1024
"""Bytes of a reply that is read whole. The largest documented one has a few hundred."""

MAX_ERROR = 64 * 1024
_MAX_MESSAGE = 300
_LONGEST_READ = 32 * 1024
"""Characters of the provider's words that are looked through for secrets: much more than is shown."""
_CHUNK = 64 * 1024


class TooLargeError(Exception):
    """A reply was longer than its cap."""


class BoundedBody:
    """A reply's body, decompressed, that ends by the deadline and never gives more than ``cap`` bytes.

    Raises:
        TooLargeError: the body is longer than ``cap``.
        OSError, urllib3.exceptions.HTTPError: the body did not come whole.
    """

    def __init__(self, response: requests.Response, deadline: Deadline, cap: int) -> None:
        self._response = response
        self._deadline = deadline
        self._left = cap

    def read(self, size: int = _CHUNK) -> bytes:
        """Return at most ``size`` bytes as soon as some came; b"" at the end."""
        if size == 0:
            return b""  # so asks ijson whether this gives bytes
        with self._deadline.running():
            self._deadline.patience(0)  # bytes that are here already do not extend the call
            data: bytes = self._response.raw.read1(size, decode_content=True) or b""
        if len(data) > self._left:
            raise TooLargeError
        self._left -= len(data)
        return data

    def read_all(self) -> bytes:
        return b"".join(iter(self.read, b""))


def parse_json(body: bytes) -> Any:
    """Decode JSON.

    Raises:
        ValueError: it is not JSON, or nested too deeply.
    """
    try:
        return json.loads(body)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def error_message(body: bytes, secret: str) -> str:
    """Return the provider's own words of an error reply, short and without a secret; "" if there are none.

    The documented shape is ``{"error": "..."}``; others and empty bodies occur. A page of HTML is no message.
    """
    try:
        found = parse_json(body)
    except ValueError:
        text = body.decode("utf-8", "replace")
        return "" if text.lstrip().startswith("<") else _tidy(text, secret)
    if isinstance(found, dict):
        for name in ("error", "message", "detail", "error_message"):
            if found.get(name):
                value = found[name]
                return _tidy(value if isinstance(value, str) else json.dumps(value), secret)
    return _tidy(found, secret) if isinstance(found, str) else ""


def says_error(body: bytes) -> bool:
    """Tell whether the body is a JSON object with an ``error`` that is set, or with that word as its ``status``."""
    try:
        found = parse_json(body)
    except ValueError:
        return False
    return isinstance(found, dict) and (bool(found.get("error")) or found.get("status") == "error")


def said_status(body: bytes) -> int | None:
    """Return the HTTP status that a body says, as a number alone or as an object's ``status``; None if it says none."""
    try:
        found = parse_json(body)
    except ValueError:
        return None
    said = found.get("status") if isinstance(found, dict) else found
    if isinstance(said, str) and re.fullmatch("[1-5][0-9]{2}", said.strip()):
        return int(said)
    return said if isinstance(said, int) and not isinstance(said, bool) else None


def _tidy(text: str, secret: str) -> str:
    return made_safe(text.replace(secret, "***"), _MAX_MESSAGE)


def made_safe(text: str, most: int) -> str:
    """Return the provider's words as they may be shown and kept: on one line of at most so many characters, without
    signatures and secrets."""
    text = redact_text(without_queries(text[:_LONGEST_READ]))
    text = re.sub(r"\s+", " ", "".join(char if char.isprintable() else " " for char in text)).strip()
    return text if len(text) <= most else text[: most - 3] + "..."
