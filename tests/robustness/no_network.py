"""A pytest plugin for goal R22: no test, nor a process that it forks, may reach another machine or look up its name.

A refused connection fails the test even if the tested code handles the error; servers on this machine are free.
"""

import ipaddress
import socket
import sys

import pytest

_refused = []


class NoNetworkError(OSError):
    """A test tried to reach another machine."""


def _is_refused(host, is_lookup):
    host = host.decode(errors="replace") if isinstance(host, bytes) else host
    try:
        address = ipaddress.ip_address(str(host).partition("%")[0])
    except ValueError:
        return host not in (None, "", "localhost", socket.gethostname())
    return not (is_lookup or address.is_loopback or address.is_unspecified)  # a number is not looked up


def _watch(event, arguments):
    """Refuse what Python is about to do on the network, of which its audit events tell."""
    if event in ("socket.connect", "socket.sendto"):
        used, address = arguments
        is_internet = used.family in (socket.AF_INET, socket.AF_INET6) and isinstance(address, tuple)
        host, what = address[0] if is_internet else None, "connection to"
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host, what = arguments[0], "search for the address of"
    else:
        return
    if _is_refused(host, what.startswith("search")):
        _refused.append(f"{what} {host}")
        raise NoNetworkError(f"tests may not use the network: {what} {host}")


def pytest_configure(config):
    sys.addaudithook(_watch)


@pytest.fixture(autouse=True)
def no_network():
    """Fails a test that tried to reach another machine; the list is that of its attempts."""
    _refused.clear()
    yield _refused
    assert not _refused, f"the test used the network: {', '.join(_refused)}"
