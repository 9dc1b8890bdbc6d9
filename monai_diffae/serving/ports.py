"""The port of a server: checked before anything is loaded."""

from __future__ import annotations

import os
import socket

from monai_diffae.errors import MachineError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Addresses that only this machine can reach."""


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
