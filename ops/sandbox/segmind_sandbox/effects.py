"""What the faults do to a call: before it has its effect, and between the effect and the reply."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from starlette.responses import HTMLResponse, Response

from segmind_sandbox.connection import HangUpError
from segmind_sandbox.faults import (
    AnyFault,
    Html200,
    HttpError,
    MalformedJson,
    RateLimited,
    ReplyLost,
    Reset,
    Slow,
    SlowDown,
)
from segmind_sandbox.sandbox import Sandbox

_PAGE = "<!doctype html><html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>"

ErrorReply = Callable[[int], Response]


async def before(sandbox: Sandbox, faults: Iterable[AnyFault], error: ErrorReply) -> Response | None:
    """Apply the faults that come before the call's effect: a reply takes the place of it. Raises HangUpError."""
    for fault in _slow_first(faults):
        match fault:
            case Slow(processed=False):
                await _wait(sandbox, fault)
            case Reset():
                raise HangUpError(reset=True)
            case HttpError(processed=False):
                return _error_reply(fault, error)
            case RateLimited():
                return too_many(error, fault.retry_after)
            case SlowDown():
                return error(503)
            case Html200(processed=False):
                return HTMLResponse(_PAGE.format(title="We will be back soon"))
            case _:
                continue
    return None


async def after(sandbox: Sandbox, faults: Iterable[AnyFault], reply: Response, error: ErrorReply) -> Response:
    """Apply the faults that change the reply of a call that had its effect. Raises HangUpError."""
    for fault in _slow_first(faults):
        match fault:
            case Slow(processed=True):
                await _wait(sandbox, fault)
            case ReplyLost():
                raise HangUpError(reset=False)
            case HttpError(processed=True):
                return _error_reply(fault, error)
            case Html200(processed=True):
                return HTMLResponse(_PAGE.format(title="We will be back soon"))
            case MalformedJson():
                body = bytes(reply.body)
                return Response(body[: len(body) // 2], reply.status_code, media_type=reply.media_type)
            case _:
                continue
    return reply


def too_many(error: ErrorReply, retry_after: float | None) -> Response:
    """A 429, with Retry-After in whole seconds if it is known."""
    reply = error(429)
    if retry_after is not None:
        reply.headers["Retry-After"] = str(math.ceil(retry_after))
    return reply


async def _wait(sandbox: Sandbox, fault: Slow) -> None:
    if not await sandbox.pause(fault.seconds):
        raise HangUpError(reset=True)


def _slow_first(faults: Iterable[AnyFault]) -> list[AnyFault]:
    return sorted(faults, key=lambda fault: not isinstance(fault, Slow))


def _error_reply(fault: HttpError, error: ErrorReply) -> Response:
    if fault.body == "empty":
        return Response(status_code=fault.status)
    if fault.body == "html":
        return HTMLResponse(_PAGE.format(title=f"Error {fault.status}"), fault.status)
    return error(fault.status)
