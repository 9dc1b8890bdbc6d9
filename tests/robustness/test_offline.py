"""Goal R22: nothing needs a network, and nothing uses one."""

import socket
import urllib.request

import pytest

pytestmark = pytest.mark.goal(id="R22")


def test_tests_cannot_reach_another_machine(no_network):
    for attempt in (
        lambda: socket.create_connection(("192.0.2.1", 80), timeout=1),
        lambda: socket.socket().connect_ex(("198.51.100.7", 1)),
        lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("203.0.113.1", 53)),
        lambda: socket.gethostbyname("example.org"),
        lambda: urllib.request.urlopen("http://example.org/", timeout=1),
    ):
        with pytest.raises(OSError, match="tests may not use the network"):
            attempt()
        assert len(no_network) == 1
        no_network.clear()
