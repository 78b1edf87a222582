"""How an API call is taken: authenticated, counted against the account's limit, perhaps met by a fault, answered.

The order is that of a gateway: a wrong key is 401 and counts for nobody, then the account's limit (429), then all else.
Errors are ``{"error": "..."}``.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from segmind_sandbox import effects
from segmind_sandbox.faults import AnyFault
from segmind_sandbox.models import BadRequestError
from segmind_sandbox.sandbox import Account, Sandbox

_MAX_BODY = 1 << 20
_FORMS = {"multipart/form-data", "application/x-www-form-urlencoded"}


class RefusedError(Exception):
    """An endpoint refuses a call with this status and sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def error(status: int, message: str | None = None) -> Response:
    """An error as the API words it."""
    return JSONResponse({"error": message or HTTPStatus(status).phrase}, status)


@dataclass
class Call:
    """An admitted call, as an endpoint sees it."""

    sandbox: Sandbox
    account: Account
    request: Request
    faults: list[AnyFault]

    @property
    def base_url(self) -> str:
        """The base of the URLs that the reply hands out, without a slash at its end."""
        return (self.sandbox.settings.public_url or str(self.request.base_url)).rstrip("/")

    async def json(self) -> object:
        """The JSON body. Raises BadRequestError if it is none or is not declared as such."""
        if self._content_type() != "application/json":
            raise BadRequestError("Content-Type must be application/json")
        try:
            body: object = json.loads(await self.request.body())
            # Neither a lone surrogate nor NaN or infinity (also as 1e999) could be sent back.
            json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, RecursionError):
            raise BadRequestError("the body is not valid JSON") from None
        return body

    async def form(self) -> dict[str, str]:
        """The form's fields, each without the quotes that the page's sample puts around it. Raises BadRequestError."""
        if self._content_type() not in _FORMS:
            raise BadRequestError("the body must be a form (multipart or urlencoded)")
        try:
            async with self.request.form() as form:
                fields = dict(_texts(form.multi_items()))
        except HTTPException as cause:
            raise BadRequestError(f"the body is not a valid form: {cause.detail}") from None
        return fields

    def query(self) -> dict[str, str]:
        """The query's fields."""
        return dict(self.request.query_params)

    def _content_type(self) -> str:
        return self.request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _texts(items: list[tuple[str, Any]]) -> Iterator[tuple[str, str]]:
    for name, value in items:
        if not isinstance(value, str):
            raise BadRequestError(f"{name}: must be a text field, not a file")
        quoted = len(value) > 1 and value[0] == value[-1] == '"'
        yield name, value[1:-1] if quoted else value


Endpoint = Callable[[Call], Awaitable[Response]]


class Operation:
    """One operation of the API as an ASGI application."""

    def __init__(self, sandbox: Sandbox, op: str, method: str, endpoint: Endpoint) -> None:
        self._sandbox = sandbox
        self._op = op
        self._method = method
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take one call."""
        coming = self._take(Request(scope, receive))
        await effects.answer(self._sandbox, self._op, coming, scope=scope, receive=receive, send=send)

    async def _take(self, request: Request) -> Response:
        sandbox = self._sandbox
        key = request.headers.get("x-api-key")
        account = sandbox.accounts.get(key or "")
        if account is None:
            sandbox.log.unknown_keys += 1
            return error(401, "Invalid API key" if key else "Missing x-api-key header")
        now = sandbox.clock()
        wait = account.limiter.admit(now)
        sandbox.log.arrived(account.name, now, admitted=wait is None)
        if wait is not None:
            return effects.too_many(_limited, wait if sandbox.settings.retry_after else None)
        if request.method != self._method:
            reply = error(405)
            reply.headers["Allow"] = self._method
            return reply
        if int(request.headers.get("content-length", "0")) > _MAX_BODY:
            return error(413)
        text = (await request.body()).decode(errors="replace")
        faults = sandbox.faults.draw(self._op, f"{request.url.path}?{request.url.query} {text}")
        return await self._answer(Call(sandbox, account, request, faults))

    async def _answer(self, call: Call) -> Response:
        early = await effects.before(self._sandbox, call.faults, error)
        if early is not None:
            return early
        try:
            reply = await self._endpoint(call)
        except BadRequestError as refusal:
            reply = error(400, str(refusal))
        except RefusedError as refusal:
            reply = error(refusal.status, refusal.message)
        return await effects.after(self._sandbox, call.faults, reply, error)


def _limited(status: int) -> Response:
    return error(status, "Rate limit exceeded")
