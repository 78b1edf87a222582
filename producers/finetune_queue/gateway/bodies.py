"""Bodies in JSON, read as strictly as those of a file."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from finetune_queue.contract.json_text import RepeatedMemberError, read_json
from finetune_queue.gateway.problems import ProblemError


class JsonRoute(APIRoute):
    """A route whose body is read here."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what handles a request."""
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            return await handle(_JsonRequest(request.scope, request.receive))

        return handler


class _JsonRequest(Request):
    async def json(self) -> Any:
        try:
            return read_json(await self.body())
        except RepeatedMemberError as error:
            raise ProblemError("bad-request", f"The body {error}.") from None
