"""The application: routes, errors and the outermost layer put together."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from finetune_queue import __version__
from finetune_queue.gateway.backend import Backend
from finetune_queue.gateway.edge import Edge, route_of
from finetune_queue.gateway.pages import page_routes
from finetune_queue.gateway.problems import Problem, documented, explain, internal_error, respond
from finetune_queue.gateway.routes import datasets, events, health, hooks, jobs, load, overview
from finetune_queue.gateway.routes.deps import admit, known_query
from finetune_queue.settings import Settings

_ABOUT = """
Submit Segmind Fast Flux fine-tunes to the queue and follow them to verified weights.

Errors are problem details (RFC 9457); `code` is the stable word for programs. Every request has an id, which is in the
header `X-Request-Id` and in the gateway's log.
"""

_ANY = documented(
    "unauthorized", "foreign-origin", "read-only", "invalid-request", "rate-limited", "queue-unavailable", "busy"
)
"""What every route of the API may answer."""


def create_app(settings: Settings) -> FastAPI:
    """Build the application. Connects to nothing before the first request."""
    backend = Backend.build(settings)
    app = FastAPI(
        title="finetune-queue",
        version=__version__,
        description=_ABOUT,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        lifespan=_lifespan,
        docs_url=None,  # the framework's pages load their scripts from another site
        redoc_url=None,
        redirect_slashes=False,  # it redirects to an absolute URL, which behind a proxy that ends TLS is plain http
        separate_input_output_schemas=False,
        exception_handlers={HTTPException: _problem, RequestValidationError: _problem},
        # The framework's spans would hold queries and paths, and a webhook's path is a secret; the edge makes its own.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.backend = backend
    app.add_middleware(Edge, clients=backend.clients, observe=backend.metrics.observe)
    for module in (jobs, events, datasets, overview, load):
        app.include_router(module.router, dependencies=[Depends(admit), Depends(known_query)], responses=_ANY)
    app.include_router(health.router)
    app.include_router(hooks.router)
    app.router.routes.extend(page_routes())
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    backend: Backend = app.state.backend
    hub = asyncio.create_task(backend.hub.run())
    try:
        yield
    finally:
        backend.hub.stop()
        hub.cancel()
        with suppress(asyncio.CancelledError):
            await hub
        await backend.close()


async def _problem(request: Request, error: Exception) -> Response:
    problem = explain(error) or internal_error()
    known = _openapi(request.app)["paths"].get(route_of(request.scope))
    if problem.code == "method-not-allowed" and known is not None:
        # The framework names the methods of the path's first route only.
        problem.headers = {"Allow": ", ".join(sorted(method.upper() for method in known))}
    return respond(problem, request.scope["state"]["request_id"])


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            license_info=app.license_info,
            routes=app.routes,
            separate_input_output_schemas=False,
        )
        problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        schema["components"]["schemas"].update({**problem.pop("$defs"), "Problem": problem})
        app.openapi_schema = schema
    return app.openapi_schema
