"""The server of the page: who may use it, and its routes, as a FastAPI application."""

import functools
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.types import ASGIApp

from monai_diffae import __version__
from monai_diffae.apps.html import SHARED, TEMPLATES
from monai_diffae.explorer.exploration import Exploration, Recipe
from monai_diffae.explorer.studio import SupersededError
from monai_diffae.serving.answers import answered
from monai_diffae.serving.server import OriginGuard

_SECURITY = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_PAGE = Path(__file__).parent / "page"
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


def build_app(exploration: Exploration, token: str, port: int, *, loopback_only: bool = True) -> FastAPI:
    """Build the application; ``loopback_only`` serves only requests to this machine's loopback address."""
    app = FastAPI(title="monai_diffae", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TokenGuard, token=token, port=port)
    app.add_middleware(OriginGuard, loopback_only=loopback_only)
    app.add_exception_handler(RequestValidationError, _in_one_line)
    _add_page(app)
    _add_answers(app, exploration)
    return app


def _add_page(app: FastAPI) -> None:
    for file in [*sorted(_PAGE.iterdir()), *(TEMPLATES / name for name in SHARED)]:
        content, kind = file.read_bytes(), _TYPES[file.suffix]
        path = "/" if file.name == "index.html" else f"/{file.name}"
        app.add_api_route(path, _constant(content, kind), response_class=Response)


def _constant(content: bytes, kind: str) -> Callable[[], Response]:
    return lambda: Response(content, media_type=kind)


def _add_answers(app: FastAPI, exploration: Exploration) -> None:
    def thumbnail(row: int) -> Response:
        headers = {"Cache-Control": "private, max-age=3600"}
        return Response(exploration.thumbnail(row), media_type="image/png", headers=headers)

    def export(recipe: Recipe) -> Response:
        name, content = exploration.export(recipe)
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(content, media_type="application/octet-stream", headers=headers)

    gets: dict[str, Callable[..., Any]] = {
        "overview": exploration.overview,
        "outliers": exploration.outliers,
        "progress": exploration.progress,
        "cases/{row}": exploration.describe,
        "cases/{row}/scan": exploration.scan,
        "samples": exploration.samples,
        "cases/{row}/thumbnail.png": thumbnail,
        "samples/calls": exploration.sample_calls,
    }
    posts: dict[str, Callable[..., Any]] = {"image": exploration.image, "calls": exploration.calls, "export": export}
    for method, answers in {"GET": gets, "POST": posts}.items():
        for path, answer in answers.items():
            app.add_api_route(f"/api/{path}", _endpoint(answer), methods=[method], response_model=None)


def _endpoint(answer: Callable[..., Any]) -> Callable[..., Response]:
    """A route with the arguments of an answer, which sends its plain values as JSON and its bytes as they are."""

    @functools.wraps(answer)
    def endpoint(**arguments: Any) -> Response:
        with answered():
            try:
                content = answer(**arguments)
            except SupersededError:
                return Response(status_code=204)
            if isinstance(content, Response):
                return content
            if isinstance(content, bytes):
                return Response(content, media_type="application/octet-stream")
            return JSONResponse(content)

    return endpoint


async def _in_one_line(request: Request, error: Exception) -> JSONResponse:
    problems = error.errors() if isinstance(error, RequestValidationError) else []
    reasons = [f"{'.'.join(map(str, each['loc'][1:])) or 'request'}: {each['msg']}" for each in problems[:3]]
    return JSONResponse({"detail": "; ".join(reasons)}, 422)


class TokenGuard(BaseHTTPMiddleware):
    """Middleware: refuse requests without the token, which is in the first address, then in a cookie."""

    # browsers share cookies among the ports of a host, so the port is part of the cookie's name

    def __init__(self, app: ASGIApp, token: str, port: int) -> None:
        super().__init__(app)
        self._token, self._cookie = token, f"monai_diffae_{port}"

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        """Pass a request on, or refuse it."""
        is_first = self._is_token(request.query_params.get("token", ""))
        in_header = request.headers.get("authorization", "").removeprefix("Bearer ")
        if is_first or self._is_token(request.cookies.get(self._cookie, "")) or self._is_token(in_header):
            response = await call_next(request)
        else:
            text = (
                "This page needs its token: open the whole address that monai-diffae explore shows in the terminal.\n"
            )
            response = PlainTextResponse(text, 403)
        for name, value in _SECURITY.items():
            response.headers.setdefault(name, value)
        if is_first:
            cookie = f"{self._cookie}={self._token}; Path=/; HttpOnly; SameSite=Strict"
            response.headers.append("Set-Cookie", cookie)
        return response

    def _is_token(self, text: str) -> bool:
        return secrets.compare_digest(text.encode("utf-8", "surrogateescape"), self._token.encode())
