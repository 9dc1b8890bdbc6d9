"""Scoring ``diffae_embed``: incremental, and one broken scan does not stop the others."""

import shutil

import pytest

pytest.importorskip("monailabel", reason="MONAI Label is not installed")


def score(server, **params):
    response = server.client.post("/scoring/diffae_embed?run_sync=true", json=params)
    assert response.status_code == 200, response.text
    return response.json()


def test_only_new_and_changed_images_are_encoded(serve, bundle_3d, studies_3d, volumes):
    server = serve(bundle_3d, studies_3d)
    assert score(server) == {"images": 4, "new": 4, "changed": 0, "removed": 0, "failed": {}}
    assert score(server)["new"] == 0
    others = list(volumes.values())[5:7]
    shutil.copy(others[0], studies_3d.folder / "added.nii.gz")
    shutil.copy(others[1], studies_3d.folder / "hippocampus_001.nii.gz")
    (studies_3d.folder / "hippocampus_003.nii.gz").unlink()
    server.app.datastore().refresh()
    assert score(server) == {"images": 4, "new": 1, "changed": 1, "removed": 1, "failed": {}}


def test_a_broken_scan_is_reported_and_the_others_are_served(serve, bundle_3d, studies_3d, pictures):
    (studies_3d.folder / "empty.nii.gz").write_bytes(b"")
    shutil.copy(next(iter(pictures.values())), studies_3d.folder / "picture.jpeg")
    server = serve(bundle_3d, studies_3d)
    result = score(server)
    assert result["images"] == 4
    assert result["failed"].keys() == {"empty", "picture"}
    assert "the file is empty" in result["failed"]["empty"]
    assert "expected a 3D volume" in result["failed"]["picture"]
    for _ in range(4):
        proposed = server.client.post("/activelearning/diffae_diversity").json()["id"]
        assert proposed in studies_3d.source
    assert server.infer("diffae_encode", "empty").status_code == 422
    assert server.infer("diffae_encode", "series-1").status_code == 200


def test_there_are_no_options(serve, bundle_3d, studies_3d):
    server = serve(bundle_3d, studies_3d)
    response = server.client.post("/scoring/diffae_embed?run_sync=true", json={"folder": "/etc"})
    assert (response.status_code, response.json()["detail"]) == (400, "params: 'folder' is unknown; use method")


def test_a_scoring_starts_by_itself_only_if_there_is_something_to_score(serve, bundle_3d, studies_3d, volumes):
    server = serve(bundle_3d, studies_3d)
    (scoring,) = server.app._scoring_methods.values()
    assert not scoring.is_current(server.app.datastore())
    score(server)
    assert scoring.is_current(server.app.datastore())
    assert server.app.async_scoring(None) == {}
    shutil.copy(list(volumes.values())[5], studies_3d.folder / "added.nii.gz")
    server.app.datastore().refresh()
    assert not scoring.is_current(server.app.datastore())
