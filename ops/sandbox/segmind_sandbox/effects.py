"""What the faults do to a call: before it has its effect, between the effect and the reply, and to the reply itself."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable

from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, Response
from starlette.types import Receive, Scope, Send

from segmind_sandbox.connection import HangUpError, hang_up
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
"""Makes an error reply of a status, in the words of the API or of a storage host."""


async def answer(
    sandbox: Sandbox, op: str, coming: Awaitable[Response], *, scope: Scope, receive: Receive, send: Send
) -> None:
    """Await the reply to a call of ``op`` and send it, or close the connection without one; count either."""
    log = sandbox.log  # of the call's arrival: a reset replaces it
    try:
        reply = await coming
    except HangUpError as end:
        log.answered(op, "reset" if end.reset else "reply_lost")
        await hang_up(scope, receive, reset=end.reset)
    except ClientDisconnect:
        log.answered(op, "client_gone")
    else:
        log.answered(op, reply.status_code)
        await reply(scope, receive, send)


async def before(sandbox: Sandbox, faults: Iterable[AnyFault], error: ErrorReply) -> Response | None:
    """Apply the faults that come before the call's effect. If one gives a reply, the call has no effect. Raises
    HangUpError."""
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
    # Waits first: any other fault ends the call.
    return sorted(faults, key=lambda fault: not isinstance(fault, Slow))


def _error_reply(fault: HttpError, error: ErrorReply) -> Response:
    if fault.body == "empty":
        return Response(status_code=fault.status)
    if fault.body == "html":
        return HTMLResponse(_PAGE.format(title=f"Error {fault.status}"), fault.status)
    return error(fault.status)
