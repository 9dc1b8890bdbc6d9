"""Which web pages may use the server: those of this machine, and those that the server itself delivers."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

LOOPBACK_ORIGIN = r"https?://(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?"
"""A pattern for origins on this machine."""


class OriginGuard:
    """ASGI middleware: refuse requests that a web page of another machine sends through the user's browser.

    Without it, any page that the user visits could start a training or read images, although the server listens on the
    loopback address only. Programs such as 3D Slicer send no origin. With ``loopback_only``, the Host must be this
    machine, too, so that a foreign name that resolves to the loopback address (DNS rebinding) is refused.
    """

    def __init__(self, app: ASGIApp, loopback_only: bool = True) -> None:
        self.app, self.loopback_only = app, loopback_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            host, origin = headers.get("host", ""), headers.get("origin")
            is_local = re.fullmatch(LOOPBACK_ORIGIN, f"http://{host}") is not None
            if self.loopback_only and not is_local:
                await _refuse(
                    "host: the server answers only this machine; use localhost, or start it with --host",
                    scope,
                    receive,
                    send,
                )
                return
            if origin is not None and not may_ask(origin, host):
                await _refuse("origin: web pages of other machines may not use this server", scope, receive, send)
                return
        await self.app(scope, receive, send)


def may_ask(origin: str, host: str) -> bool:
    """Whether a page with this header ``Origin`` may send requests to this ``Host``.

    Example:
        >>> may_ask("http://localhost:3000", "127.0.0.1:8000"), may_ask("https://example.org", "127.0.0.1:8000")
        (True, False)
        >>> may_ask("http://server.clinic:8000", "server.clinic:8000")
        True
    """
    return re.fullmatch(LOOPBACK_ORIGIN, origin) is not None or urlsplit(origin).netloc == host != ""


async def _refuse(reason: str, scope: Scope, receive: Receive, send: Send) -> None:
    await JSONResponse({"detail": reason}, status_code=403)(scope, receive, send)
