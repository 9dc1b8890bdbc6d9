"""Servers: errors become answers, pages of other machines are refused, and ports are checked."""

import logging
import socket
from pathlib import Path

import pytest
from fastapi import HTTPException
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from monai_diffae import errors
from monai_diffae.serving.answers import ConflictError, NotFoundError, answered
from monai_diffae.serving.server import OriginGuard, check_port


def test_every_error_has_its_status():
    wrapped = RuntimeError("applying transform\nmany lines")  # as MONAI wraps ours
    wrapped.__cause__ = errors.ScanError("x;\n y")
    for error, status in [
        (errors.ConfigError("x"), 400), (errors.UnsafeInputError("x"), 400), (errors.CohortError("x"), 404),
        (NotFoundError("x"), 404), (ConflictError("x"), 409), (errors.BusyError("x"), 409),
        (errors.ScanError("x"), 422), (wrapped, 422), (errors.MachineError("x"), 503),
    ]:  # fmt: skip
        with pytest.raises(HTTPException) as answer, answered():
            raise error
        assert answer.value.status_code == status
        assert answer.value.detail in ("x", "x; y")
    with pytest.raises(HTTPException, match="418"), answered():
        raise HTTPException(418)  # it is an answer already


def test_unexpected_errors_say_nothing_about_files(caplog):
    with caplog.at_level(logging.ERROR), pytest.raises(HTTPException) as answer, answered():
        Path("/data/doe_jane.nii.gz").read_bytes()
    assert answer.value.status_code == 500
    assert "doe_jane" not in answer.value.detail + caplog.text
    assert "unexpected FileNotFoundError at " in caplog.text


def client(host, loopback_only=True):
    async def answer(request):
        return PlainTextResponse("served")

    app = Starlette(routes=[Route("/", answer, methods=["GET", "POST"])])
    return TestClient(OriginGuard(app, loopback_only=loopback_only), base_url=f"http://{host}")


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "[::1]:8000", "localhost"])
def test_pages_of_this_machine_are_served_and_those_of_others_refused(host):
    assert client(host).post("/").text == "served"
    for origin in ("http://localhost:3000", "http://127.0.0.1:8000", "http://[::1]:3000"):
        assert client(host).post("/", headers={"origin": origin}).text == "served"
    for origin in ("https://example.org", "null", "http://localhost.example.org", "http://127.0.0.1.example.org:8000"):
        response = client(host).post("/", headers={"origin": origin})
        assert response.status_code == 403
        assert response.json()["detail"] == "origin: web pages of other machines may not use this server"


def test_a_foreign_name_for_this_machine_is_refused_unless_others_are_served_too():
    assert client("rebound.example.org:8000").get("/").status_code == 403
    pages = client("clinic.example.org:8000", loopback_only=False)
    assert pages.get("/").text == "served"
    assert pages.post("/", headers={"origin": "http://clinic.example.org:8000"}).text == "served"
    assert pages.post("/", headers={"origin": "https://example.org"}).status_code == 403


def test_a_port_in_use_and_an_address_of_another_machine_are_refused():
    check_port("127.0.0.1", 0)  # any free one
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(errors.MachineError, match="Address already in use"):
            check_port("127.0.0.1", other.getsockname()[1])
    with pytest.raises(errors.MachineError, match="choose another port"):
        check_port("192.0.2.1", 8000)  # reserved for documentation
