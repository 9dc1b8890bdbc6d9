"""Serve an application until Ctrl-C."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp


def serve(app: ASGIApp, host: str, port: int, announce: Callable[[], None], *, end_after_s: int = 2) -> None:
    """Serve an application until Ctrl-C or SIGTERM; running requests then have ``end_after_s`` seconds.

    ``announce`` tells the user the address; it is called when requests are already accepted.
    """
    import uvicorn

    config = uvicorn.Config(
        app, host=host, port=port, log_config=None, access_log=False, timeout_graceful_shutdown=end_after_s
    )
    listening = config.bind_socket()
    listening.listen()
    announce()
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again after it has ended
        uvicorn.Server(config).run(sockets=[listening])
