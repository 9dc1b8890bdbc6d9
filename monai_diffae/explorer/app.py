"""The server of the page: its routes, as a FastAPI application."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response

from monai_diffae import __version__
from monai_diffae.apps.web_page import MAP_SCRIPTS, STYLE
from monai_diffae.explorer.access import TokenGuard
from monai_diffae.explorer.exploration import Exploration, Quality
from monai_diffae.explorer.recipes import Recipe
from monai_diffae.explorer.worker import SupersededError
from monai_diffae.serving.answers import answered
from monai_diffae.serving.origins import OriginGuard

_PAGE = Path(__file__).parent / "page"
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}

Row = Annotated[int, InPath(ge=0, lt=2**31)]
Window = Annotated[str, Query(pattern=r"^\w{1,40}$")]
"""A name that a browser window chooses for itself: newer requests of a window replace older ones."""
Count = Annotated[int, Query(ge=1, le=64)]
Seed = Annotated[int, Query(ge=0, lt=2**32)]


def build_app(exploration: Exploration, token: str, port: int, *, loopback_only: bool = True) -> FastAPI:
    """Build the application; ``loopback_only`` serves only requests to this machine's loopback address."""
    app = FastAPI(title="monai_diffae", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TokenGuard, token=token, port=port)
    app.add_middleware(OriginGuard, loopback_only=loopback_only)
    app.add_exception_handler(RequestValidationError, _in_one_line)
    _add_page(app)
    _add_cases(app, exploration)
    _add_images(app, exploration)
    return app


def _add_page(app: FastAPI) -> None:
    for file in [*sorted(_PAGE.iterdir()), STYLE, *MAP_SCRIPTS]:
        content, kind = file.read_bytes(), _TYPES[file.suffix]
        path = "/" if file.name == "index.html" else f"/{file.name}"
        app.add_api_route(path, _constant(content, kind), response_class=Response)


def _constant(content: bytes, kind: str) -> Callable[[], Response]:
    return lambda: Response(content, media_type=kind)


def _add_cases(app: FastAPI, exploration: Exploration) -> None:
    @app.get("/api/overview")
    def overview() -> Any:
        return _plain(exploration.overview)

    @app.get("/api/outliers")
    def outliers() -> Any:
        return _plain(exploration.outliers)

    @app.get("/api/cases/{row}")
    def about(row: Row) -> Any:
        return _plain(lambda: exploration.about(row))

    @app.get("/api/cases/{row}/thumbnail.png")
    def thumbnail(row: Row) -> Response:
        with answered():
            content = exploration.thumbnail(row)
        return Response(content, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})

    @app.get("/api/cases/{row}/scan")
    def scan(row: Row) -> Response:
        return _bytes(lambda: exploration.scan(row))


def _add_images(app: FastAPI, exploration: Exploration) -> None:
    @app.post("/api/image")
    def image(recipe: Recipe, window: Window, quality: Quality = "full") -> Response:
        return _bytes(lambda: exploration.image(recipe, quality, f"{window}:image"))

    @app.get("/api/progress")
    def progress() -> Any:
        return _plain(exploration.progress)

    @app.post("/api/calls")
    def calls(recipe: Recipe) -> Any:
        return _plain(lambda: exploration.calls(recipe))

    @app.post("/api/export")
    def export(recipe: Recipe) -> Response:
        with answered():
            name, content = exploration.export(recipe)
        disposition = f'attachment; filename="{name}"'
        return Response(content, media_type="application/octet-stream", headers={"Content-Disposition": disposition})

    @app.get("/api/samples")
    def samples(count: Count, seed: Seed, window: Window) -> Response:
        return _bytes(lambda: exploration.samples(count, seed, f"{window}:samples"))

    @app.get("/api/samples/calls")
    def sample_calls(count: Count, seed: Seed) -> Any:
        return _plain(lambda: exploration.sample_calls(count, seed))


def _plain(answer: Callable[[], Any]) -> JSONResponse:
    with answered():
        return JSONResponse(answer())


def _bytes(answer: Callable[[], bytes]) -> Response:
    with answered():
        try:
            return Response(answer(), media_type="application/octet-stream")
        except SupersededError:
            return Response(status_code=204)


async def _in_one_line(request: Request, error: Exception) -> JSONResponse:
    problems = error.errors() if isinstance(error, RequestValidationError) else []
    reasons = [f"{'.'.join(map(str, each['loc'][1:])) or 'request'}: {each['msg']}" for each in problems[:3]]
    return JSONResponse({"detail": "; ".join(reasons)}, 422)
