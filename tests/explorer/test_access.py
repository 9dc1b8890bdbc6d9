"""Only who knows the token may use the page."""

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from monai_diffae.explorer.access import TokenGuard


@pytest.fixture
def client():
    async def answer(request):
        return PlainTextResponse("served")

    app = Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])
    return TestClient(TokenGuard(app, "s3cret", 8765), base_url="http://127.0.0.1:8765")


@pytest.mark.parametrize(
    "path", ["/", "/app.js", "/api/overview", "/?token=", "/?token=wrong", "/?token=s3cre", "/?a=s3cret"]
)
def test_without_the_token_nothing_is_served(client, path):
    response = client.get(path)
    assert response.status_code == 403
    assert "open the whole address" in response.text
    assert "set-cookie" not in response.headers


def test_the_address_sets_a_cookie_for_later_requests(client):
    first = client.get("/?token=s3cret")
    assert first.text == "served"
    cookie = first.headers["set-cookie"]
    assert cookie.startswith("monai_diffae_8765=")
    assert {"HttpOnly", "SameSite=Strict"} <= set(cookie.split("; "))
    assert client.get("/app.js").text == "served"
    assert "set-cookie" not in client.get("/app.js").headers


def test_programs_may_send_a_header(client):
    assert client.get("/", headers={"authorization": "Bearer s3cret"}).text == "served"
    assert client.get("/", headers={"authorization": "Bearer wrong"}).status_code == 403


def test_the_cookie_of_another_server_does_not_count(client):
    assert client.get("/", headers={"cookie": "monai_diffae_8000=s3cret"}).status_code == 403


def test_odd_bytes_are_refused_and_not_an_error(client):
    for path in ("/?token=%ff%fe", "/?token=%E2%82%AC"):
        assert client.get(path).status_code == 403


def test_every_answer_has_the_headers_that_protect_the_page(client):
    for response in (client.get("/"), client.get("/?token=s3cret")):
        assert response.headers["content-security-policy"].startswith("default-src 'self'")
        assert response.headers["referrer-policy"] == "no-referrer"
        assert response.headers["cache-control"] == "no-store"
