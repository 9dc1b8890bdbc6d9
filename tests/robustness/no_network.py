"""A pytest plugin for goal R22: no test may connect to another machine, or look up its name.

Loopback addresses and Unix sockets are free, as tests talk to servers that they start. A refused connection raises an
``OSError`` as it would without a network, and fails the test, even if the tested code handles the error. The patch acts
in the processes of the tests and in those that they fork, not in programs that they start;
``tests/robustness/test_offline.py`` runs the main commands without any network.
"""

import ipaddress
import socket

import pytest

_refused = []


class NoNetworkError(OSError):
    """A test tried to reach another machine."""


def _is_local(host):
    if isinstance(host, bytes):
        host = host.decode(errors="replace")
    if not isinstance(host, str) or host in ("", "localhost", socket.gethostname()):
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _check(what, host):
    if not _is_local(host):
        _refused.append(f"{what} {host}")
        raise NoNetworkError(f"tests may not use the network: {what} {host}")


def _is_number(host):
    try:
        ipaddress.ip_address(str(host).partition("%")[0])
    except ValueError:
        return False
    return True


def pytest_configure(config):
    connect, connect_ex, sendto = socket.socket.connect, socket.socket.connect_ex, socket.socket.sendto
    getaddrinfo, gethostbyname = socket.getaddrinfo, socket.gethostbyname

    def checked(sock, address):
        if sock.family in (socket.AF_INET, socket.AF_INET6) and isinstance(address, tuple):
            _check("connection to", address[0])

    def guarded_connect(self, address):
        checked(self, address)
        connect(self, address)

    def guarded_connect_ex(self, address):
        checked(self, address)
        return connect_ex(self, address)

    def guarded_sendto(self, data, *rest):
        checked(self, rest[-1])
        return sendto(self, data, *rest)

    def guarded_getaddrinfo(host, *rest, **more):
        if not _is_number(host):  # a number is not looked up
            _check("search for the address of", host)
        return getaddrinfo(host, *rest, **more)

    def guarded_gethostbyname(host):
        if not _is_number(host):
            _check("search for the address of", host)
        return gethostbyname(host)

    socket.socket.connect = guarded_connect
    socket.socket.connect_ex = guarded_connect_ex
    socket.socket.sendto = guarded_sendto
    socket.getaddrinfo, socket.gethostbyname = guarded_getaddrinfo, guarded_gethostbyname


@pytest.fixture(autouse=True)
def no_network():
    """Fails a test that tried to reach another machine; the list is that of its attempts."""
    _refused.clear()
    yield _refused
    assert not _refused, f"the test used the network: {', '.join(_refused)}"
