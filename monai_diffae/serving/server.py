"""A server of this machine: its port, which web pages may use it, and how long it runs."""

import contextlib
import os
import re
import socket
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from monai_diffae.errors import MachineError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Addresses that only this machine can reach."""
LOOPBACK_ORIGIN = r"https?://(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?"
"""A pattern for origins on this machine."""


def check_port(host: str, port: int) -> None:
    """Check that a server can listen."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as test:
            test.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            test.bind(address)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else "no such address"
        raise MachineError(f"port: {host}:{port} cannot be used ({reason}); choose another port") from error


def serve(app: ASGIApp, host: str, port: int, announce: Callable[[], None], *, end_after_s: int = 2) -> None:
    """Serve until Ctrl-C or SIGTERM; ``announce`` tells the user the address when requests are already accepted."""
    import uvicorn

    config = uvicorn.Config(
        app, host=host, port=port, log_config=None, access_log=False, timeout_graceful_shutdown=end_after_s
    )
    listening = config.bind_socket()
    listening.listen()
    announce()
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again after it has ended
        uvicorn.Server(config).run(sockets=[listening])


class OriginGuard:
    """ASGI middleware: refuse requests that a web page of another machine sends through the user's browser.

    Otherwise any page could start a training or read images. Programs such as 3D Slicer send no origin. With
    ``loopback_only``, the Host must be this machine, too, against DNS rebinding.
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
                reason = "host: the server answers only this machine; use localhost, or start it with --host"
                await _refuse(reason, scope, receive, send)
                return
            if origin is not None and not may_ask(origin, host):
                await _refuse("origin: web pages of other machines may not use this server", scope, receive, send)
                return
        await self.app(scope, receive, send)


def may_ask(origin: str, host: str) -> bool:
    """Whether a page with this header ``Origin`` may send requests to this ``Host``."""
    return re.fullmatch(LOOPBACK_ORIGIN, origin) is not None or urlsplit(origin).netloc == host != ""


async def _refuse(reason: str, scope: Scope, receive: Receive, send: Send) -> None:
    await JSONResponse({"detail": reason}, status_code=403)(scope, receive, send)
