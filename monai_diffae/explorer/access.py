"""Who may use the page: whoever has the address with its token, as with Jupyter."""

from __future__ import annotations

import secrets
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SECURITY = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class TokenGuard:
    """ASGI middleware: refuse requests without the token.

    The token is in the address that is opened first (``/?token=...``). The answer sets a cookie, so that later requests
    need no token in their address. Programs may send it as ``Authorization: Bearer <token>``. The port is part of the
    cookie's name, because browsers share cookies among the ports of a host.
    """

    def __init__(self, app: ASGIApp, token: str, port: int) -> None:
        self.app, self._token, self._cookie = app, token, f"monai_diffae_{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        in_address = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        is_first = self._is_token(in_address)
        in_cookie = cookie_parser(headers.get("cookie", "")).get(self._cookie, "")
        in_header = headers.get("authorization", "").removeprefix("Bearer ")

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                for name, value in _SECURITY.items():
                    answer.setdefault(name, value)
                if is_first:
                    cookie = f"{self._cookie}={self._token}; Path=/; HttpOnly; SameSite=Strict"
                    answer.append("Set-Cookie", cookie)
            await send(message)

        if is_first or self._is_token(in_cookie) or self._is_token(in_header):
            await self.app(scope, receive, send_safely)
            return
        refused = PlainTextResponse(
            "This page needs its token: open the whole address that monai-diffae explore shows in the terminal.\n", 403
        )
        await refused(scope, receive, send_safely)

    def _is_token(self, text: str) -> bool:
        return secrets.compare_digest(text.encode("utf-8", "surrogateescape"), self._token.encode())
