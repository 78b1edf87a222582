"""JSON bodies, read as strictly as the files that the CLI submits."""

from collections.abc import Callable, Coroutine
from json import JSONDecodeError
from typing import Any

from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response

from finetune_queue.contract.json_text import RepeatedMemberError, read_json
from finetune_queue.gateway.problems import ProblemError


class JsonRoute(APIRoute):
    """A route that reads its JSON body with :func:`read_json`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what handles a request."""
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            return await handle(_JsonRequest(request.scope, request.receive))

        return handler


def check_encoding(headers: Headers) -> None:
    """Refuse a compressed body: without unpacking it would be taken for broken JSON, or no ZIP.

    Raises:
        ProblemError: 415.
    """
    coding = headers.get("content-encoding", "identity")
    if coding.strip().lower() not in {"", "identity"}:
        message = "Send the body as it is, without a Content-Encoding."
        raise ProblemError("unsupported-media-type", message, headers={"Accept-Encoding": "identity"})


class _JsonRequest(Request):
    async def json(self) -> Any:
        check_encoding(self.headers)
        try:
            return read_json(await self.body())
        except RepeatedMemberError as error:
            raise ProblemError("bad-request", f"The body {error}.") from None
        except UnicodeDecodeError:
            raise ProblemError("bad-request", "The body is not UTF-8 text.") from None
        except RecursionError:
            raise ProblemError("bad-request", "The body is nested too deeply.") from None
        except JSONDecodeError:
            raise  # FastAPI makes a RequestValidationError of it
        except ValueError:
            raise ProblemError("bad-request", "A number in the body has too many digits.") from None
