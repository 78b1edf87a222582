"""The page for people: one HTML file with its scripts and style, served from the package, reaching nothing else."""

from importlib.resources import files

from starlette.responses import Response
from starlette.routing import BaseRoute, Route

_TYPES = {"html": "text/html; charset=utf-8", "js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8"}

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
}


def page_routes() -> list[BaseRoute]:
    """Return the routes of the page. Nothing on it is secret: what it shows it asks the API for, with a token."""
    names = sorted(each.name for each in files(__package__).joinpath("page").iterdir())
    return [_route("/" if name == "index.html" else f"/{name}", name) for name in names]


def _route(path: str, name: str) -> Route:
    body = files(__package__).joinpath("page", name).read_bytes()
    kind = _TYPES[name.rpartition(".")[2]]

    async def serve(_request: object) -> Response:
        return Response(body, media_type=kind, headers=_HEADERS)

    return Route(path, serve, methods=["GET"], name=name)
