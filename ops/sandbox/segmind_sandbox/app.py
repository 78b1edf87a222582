"""The sandbox as an ASGI application."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from segmind_sandbox import api, control, finetunes, storage, webhook_api
from segmind_sandbox.sandbox import Sandbox
from segmind_sandbox.settings import SandboxSettings


def create_app(settings: SandboxSettings) -> Starlette:
    """A sandbox of its own, as an ASGI application.

    To run it with faults that close connections, use segmind_sandbox.server, or uvicorn with ``http=SandboxProtocol``.
    """
    sandbox = Sandbox(settings)

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        await sandbox.start()
        try:
            yield
        finally:
            await sandbox.stop()

    async def unknown(_request: Request, refusal: Exception) -> Response:
        status = refusal.status_code if isinstance(refusal, HTTPException) else 500
        sandbox.log.answered("unknown", status)
        return api.error(status)

    app = Starlette(
        routes=[
            *finetunes.routes(sandbox),
            *webhook_api.routes(sandbox),
            *storage.routes(sandbox),
            *control.Control(sandbox).routes(),
        ],
        lifespan=lifespan,
        exception_handlers={HTTPException: unknown},
    )
    app.router.redirect_slashes = False  # the API has no address with a slash at its end
    app.state.sandbox = sandbox
    return app
