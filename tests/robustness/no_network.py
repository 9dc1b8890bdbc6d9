"""A pytest plugin for goal R22: no test, nor a process that it forks, may reach another machine or look up its name.

A refused connection fails the test even if the tested code handles the error; servers on this machine are free.
"""

import ipaddress
import socket

import pytest

_refused = []


class NoNetworkError(OSError):
    """A test tried to reach another machine."""


def _address(host):
    try:
        return ipaddress.ip_address(str(host).partition("%")[0])
    except ValueError:
        return None


def _check(what, host):
    host = host.decode(errors="replace") if isinstance(host, bytes) else host
    address = _address(host)
    is_local = (
        host in (None, "", "localhost", socket.gethostname())
        if address is None
        else (address.is_loopback or address.is_unspecified)
    )
    if not is_local:
        _refused.append(f"{what} {host}")
        raise NoNetworkError(f"tests may not use the network: {what} {host}")


def _guard(owner, name, what, host_of):
    original = getattr(owner, name)

    def guarded(*arguments, **options):
        _check(what, host_of(*arguments))
        return original(*arguments, **options)

    setattr(owner, name, guarded)


def pytest_configure(config):
    def of_socket(sock, *arguments):
        is_internet = sock.family in (socket.AF_INET, socket.AF_INET6) and isinstance(arguments[-1], tuple)
        return arguments[-1][0] if is_internet else None

    def of_name(host, *_):
        return None if _address(host) else host  # a number is not looked up

    for name in ("connect", "connect_ex", "sendto"):
        _guard(socket.socket, name, "connection to", of_socket)
    for name in ("getaddrinfo", "gethostbyname"):
        _guard(socket, name, "search for the address of", of_name)


@pytest.fixture(autouse=True)
def no_network():
    """Fails a test that tried to reach another machine; the list is that of its attempts."""
    _refused.clear()
    yield _refused
    assert not _refused, f"the test used the network: {', '.join(_refused)}"
