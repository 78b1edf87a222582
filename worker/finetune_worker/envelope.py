"""Messages as they lie in the queue's list. What kombu and Celery would fail on is wrapped into a message that can be
set aside.

Any program may push to a Redis list. An entry without its properties, or with a body that is no task's, raises errors
in the middle of kombu and Celery that end the worker; kombu then puts it back, and the next worker ends, too. Other
entries are delivered well, but lost when they have to go back to their queue: kombu drops an entry that it fails on
there, or puts it into the queue that the entry names, though it came from another.
"""

import base64
import binascii
import json
import math
import uuid
from typing import Any

from kombu.utils.json import dumps

PROBLEM = "finetune_problem"
"""The header of a message that is only to be set aside: what was wrong with the entry that it holds."""

NO_TASK = "application/octet-stream"
"""The content type of such a message. No worker accepts it, so Celery hands the message to ``DeadLetterStep``."""


class MalformedError(Exception):
    """Says what is wrong with a message."""


def well_formed(entry: object, queue: str) -> dict[str, Any]:
    """Return the entry of a queue's list if it is a message that Celery can read and kombu can put back, else one that
    holds it."""
    try:
        return _checked(entry, queue)
    except MalformedError as error:
        return wrapped(entry, queue, str(error))


def wrapped(entry: object, queue: str, problem: str) -> dict[str, Any]:
    """Return a message that holds the entry of a queue's list as it came."""
    # kombu has read values of its own types in it, as a time, that only kombu can write.
    text = entry if isinstance(entry, str) else dumps(entry, ensure_ascii=False)
    try:
        raw = text.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # by an escape in JSON, not by bytes that are not UTF-8
        raw = text.encode(errors="surrogatepass")
    return {
        "body": base64.b64encode(raw).decode(),
        "content-type": NO_TASK,
        "content-encoding": "binary",
        "headers": {PROBLEM: problem},
        "properties": {
            "delivery_tag": str(uuid.uuid4()),
            "delivery_info": {"exchange": "", "routing_key": queue},
            "body_encoding": "base64",
        },
    }


def _checked(entry: object, queue: str) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise MalformedError("it is not a JSON object")
    properties = _object(entry, "properties")
    _text(properties, "delivery_tag")
    place = _object(properties, "delivery_info")
    for name in ("exchange", "routing_key"):
        if not isinstance(place.get(name), str):
            raise MalformedError(f"its properties.delivery_info has no string '{name}'")
    priority = properties.get("priority")
    if isinstance(priority, float) and not math.isfinite(priority):  # kombu passes over whatever else is not a number
        raise MalformedError("its properties.priority is not a finite number")
    for name in ("content-type", "content-encoding"):
        _text(entry, name)
    body = _body(entry, properties.get("body_encoding"))
    headers = entry.get("headers")
    if headers is not None and not isinstance(headers, dict):
        raise MalformedError("its headers are not a JSON object")
    if headers and "task" in headers:  # Celery's protocol 2; what lacks it is Celery's to judge
        for name in ("task", "id"):
            _text(headers, name)
        _check_call(entry, body)
    back = {**place, "exchange": "", "routing_key": queue}
    return {**entry, "headers": headers or {}, "properties": {**properties, "delivery_info": back}}


def _object(of: dict[str, Any], name: str) -> dict[str, Any]:
    found = of.get(name)
    if not isinstance(found, dict):
        raise MalformedError(f"it has no JSON object '{name}'")
    return found


def _text(of: dict[str, Any], name: str) -> str:
    found = of.get(name)
    if not isinstance(found, str) or not found:
        raise MalformedError(f"it has no string '{name}'")
    return found


def _body(entry: dict[str, Any], encoding: object) -> bytes:
    body = _text(entry, "body")
    if encoding is None:
        try:
            return body.encode(errors="surrogateescape")
        except UnicodeEncodeError:
            raise MalformedError("its body holds half of a character (a lone surrogate)") from None
    if encoding != "base64":
        raise MalformedError("its properties.body_encoding is not base64")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise MalformedError("its body is not base64, as properties.body_encoding says") from None


def _check_call(entry: dict[str, Any], body: bytes) -> None:
    if entry["content-type"] != "application/json":
        return  # which Celery refuses by itself
    try:
        call = json.loads(body)
    except ValueError:
        return  # the same
    except RecursionError:
        raise MalformedError("its body is nested too deeply") from None
    if isinstance(call, dict) and "args" in call:
        return  # a mixture of both protocols that Celery knows
    match call:
        case [list(), dict(), dict() | None]:
            return
    raise MalformedError("its body is not [args, kwargs, options], as Celery's protocol 2 has it")
