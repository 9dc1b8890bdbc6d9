"""The ASGI application."""

import pytest

pytest.importorskip("monailabel", reason="MONAI Label is not installed")

from monai_diffae.errors import ConfigError


@pytest.fixture
def client(serve, bundle_3d, studies_3d):
    return serve(bundle_3d, studies_3d).client


def test_routes_that_replace_weights_or_read_paths_are_left_out(client):
    assert client.put("/model/diffae_encode", files={"file": ("a.pt", b"x")}).status_code in (404, 405)
    assert client.get("/model/diffae_encode").status_code == 404
    assert client.post("/infer/wsi/diffae_encode?image=/etc/passwd").status_code == 404
    assert client.post("/reload").status_code == 404


def test_documentation_and_ohif_are_served(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/info/", "/infer/{model}", "/train/{model}", "/activelearning/{strategy}", "/datastore/label"} <= set(
        paths
    )
    assert "<html" in client.get("/ohif/").text


def test_no_page_runs_a_script_of_another_server(client):
    assert [client.get(page).status_code for page in ("/docs", "/redoc")] == [404, 404]
    assert '<script src="http' not in client.get("/ohif/").text


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://127.0.0.1:8000"])
def test_pages_of_this_machine_may_read_answers(client, origin):
    response = client.get("/info/", headers={"origin": origin})
    assert response.headers["access-control-allow-origin"] == origin


def test_pages_of_other_machines_may_not(client):
    for method in ("get", "post", "options"):
        response = getattr(client, method)("/info/", headers={"origin": "https://example.org"})
        assert response.status_code == 403
        assert "access-control-allow-origin" not in response.headers
    assert client.get("/info/", headers={"host": "rebound.example.org"}).status_code == 403


def test_downloads_are_of_the_datastore_only(client, studies_3d):
    source = studies_3d.source["hippocampus_001"].read_bytes()
    assert client.get("/datastore/image?image=hippocampus_001").content == source
    assert client.head("/datastore/image?image=hippocampus_001").status_code == 200
    for image, status in (("../app-0/settings", 400), ("/etc/passwd", 400), ("", 400), ("unknown", 404)):
        for path in ("image", "image/info"):
            assert client.get(f"/datastore/{path}?image={image}").status_code == status
        for path in ("label", "label/info"):
            assert client.get(f"/datastore/{path}?label={image}&tag=final").status_code in (400, 404)
    assert client.get("/datastore/label?label=hippocampus_001&tag=../..").status_code == 400


def test_without_a_folder_the_message_says_what_to_set(monkeypatch):
    from monai_diffae.label import asgi

    monkeypatch.delenv("MONAI_LABEL_APP_DIR", raising=False)
    with pytest.raises(ConfigError, match="MONAI_LABEL_APP_DIR"):
        asgi.app  # noqa: B018 - it is built when it is asked for
    with pytest.raises(AttributeError):
        asgi.other  # noqa: B018
