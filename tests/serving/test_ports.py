"""A port is checked before anything is loaded."""

import socket

import pytest

from monai_diffae.errors import MachineError
from monai_diffae.serving.ports import check_port


def test_a_port_in_use_is_refused():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(MachineError, match="Address already in use"):
            check_port("127.0.0.1", other.getsockname()[1])


def test_an_address_that_the_machine_does_not_have_is_refused():
    with pytest.raises(MachineError, match="choose another port"):
        check_port("192.0.2.1", 8000)  # reserved for documentation


def test_any_free_port_will_do():
    check_port("127.0.0.1", 0)
