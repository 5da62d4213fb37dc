"""The playground at `/`: files of the package, which a browser loads without a build step or another host."""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

FILES = Path(__file__).parent / "static"
FRESH = {"Cache-Control": "no-cache"}
"""A browser asks whether its copy is still the newest, so that modules of two releases never meet."""


class PageFiles(StaticFiles):
    """Files below /static/."""

    def file_response(self, *args, **kwargs):  # the signature of Starlette's, which it may extend
        response = super().file_response(*args, **kwargs)
        response.headers.update(FRESH)
        return response


async def show(request: Request) -> FileResponse:
    """The page itself."""
    return FileResponse(FILES / "index.html", headers=FRESH)


async def show_docs(request: Request) -> FileResponse:
    """The documentation of the API, which renders /openapi.json."""
    return FileResponse(FILES / "docs.html", headers=FRESH)


ROUTES: tuple[BaseRoute, ...] = (
    Route("/", show),
    Route("/docs", show_docs),
    Mount("/static", PageFiles(directory=FILES)),
)


def is_open(path: str) -> bool:
    """Whether a path belongs to the page, which needs no token: it asks for one itself."""
    return path == "/" or path.startswith("/static/")
