"""Pages of other machines are refused; viewers and pages of this machine are served."""

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from monai_diffae.serving.origins import OriginGuard


def client(host: str, *, loopback_only: bool = True) -> TestClient:
    async def answer(request):
        return PlainTextResponse("served")

    app = Starlette(routes=[Route("/", answer, methods=["GET", "POST"])])
    return TestClient(OriginGuard(app, loopback_only=loopback_only), base_url=f"http://{host}")


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000", "[::1]:8000", "localhost"])
@pytest.mark.parametrize("origin", [None, "http://localhost:3000", "http://127.0.0.1:8000", "http://[::1]:3000"])
def test_this_machine_is_served(host, origin):
    headers = {} if origin is None else {"origin": origin}
    assert client(host).post("/", headers=headers).text == "served"


@pytest.mark.parametrize(
    "origin", ["https://example.org", "null", "http://localhost.example.org", "http://127.0.0.1.example.org:8000"]
)
def test_pages_of_other_machines_are_refused(origin):
    response = client("127.0.0.1:8000").post("/", headers={"origin": origin})
    assert (response.status_code, response.json()["detail"]) == (
        403,
        "origin: web pages of other machines may not use this server",
    )


def test_a_foreign_name_for_this_machine_is_refused():
    assert client("rebound.example.org:8000").get("/").status_code == 403
    assert client("rebound.example.org:8000", loopback_only=False).get("/").text == "served"


def test_a_server_for_others_serves_its_own_pages():
    pages = client("clinic.example.org:8000", loopback_only=False)
    assert pages.post("/", headers={"origin": "http://clinic.example.org:8000"}).text == "served"
    assert pages.post("/", headers={"origin": "https://example.org"}).status_code == 403
