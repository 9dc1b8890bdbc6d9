"""The app: what it offers, that requests cannot reach other files, and that MONAI Label's own server can run it."""

import json

import numpy as np
import pytest

pytest.importorskip("monailabel", reason="MONAI Label is not installed")

from label_scans import fill
from PIL import Image

from monai_diffae.errors import ConfigError

TASKS = {"diffae_anomaly", "diffae_anomaly_map", "diffae_reconstruct", "diffae_edit", "diffae_encode",
         "diffae_neighbors"}  # fmt: skip


def test_info_lists_everything_and_viewers_list_the_label_map(serve, bundle_3d, studies_3d):
    info = serve(bundle_3d, studies_3d).client.get("/info/").json()
    assert info["models"].keys() == TASKS
    segmentations = {name: task for name, task in info["models"].items() if task["type"] == "segmentation"}
    assert segmentations.keys() == {"diffae_anomaly"}
    assert segmentations["diffae_anomaly"]["labels"] == {"anomalies": 1}
    assert segmentations["diffae_anomaly"]["config"] == {"quantile": 0.99}
    assert all(task["dimension"] == 3 for task in info["models"].values())
    assert info["labels"] == ["anomalies"]
    assert info["trainers"].keys() == {"diffae"}
    assert info["scoring"].keys() == {"diffae_embed"}
    assert {"diffae_diversity", "diffae_outlier", "diffae_uncertain", "diffae_mixed", "random"} <= set(
        info["strategies"]
    )


def test_requests_reach_images_of_the_datastore_and_options_only(serve, bundle_3d, studies_3d):
    server = serve(bundle_3d, studies_3d)
    for image, status in (("", 400), ("../studies/hippocampus_001", 400), ("/etc/passwd", 400), ("unknown", 404)):
        for model in TASKS:
            response = server.infer(model, image)
            assert response.status_code == status, response.text
            assert response.json()["detail"].startswith("image: ")
    for params in ({"image": "/etc/passwd"}, {"session": {"name": "../x"}}, {"label": "/etc/passwd"}, {"unknown": 1}):
        response = server.infer("diffae_encode", "hippocampus_001", **params)
        assert (response.status_code, response.json()["detail"][:8]) == (400, "params: ")
    for text in ("{", "[]", "null"):
        response = server.client.post("/infer/diffae_encode?image=hippocampus_001", data={"params": text})
        assert (response.status_code, response.json()["detail"][:8]) == (400, "params: ")


def test_images_of_another_dimension_or_colour_are_refused(serve, bundle_3d, bundle_2d, studies_2d, tmp_path):
    server = serve(bundle_3d, studies_2d)
    id = next(iter(studies_2d.source))
    for model in ("diffae_encode", "diffae_reconstruct", "diffae_anomaly"):
        response = server.infer(model, id)
        assert response.status_code == 422
        assert "a 2D image (224 x 224), expected a 3D volume" in response.json()["detail"]
    studies = fill(tmp_path / "colour", {})
    pixels = np.random.default_rng(0).integers(256, size=(32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(studies.folder / "colour.png")
    response = serve(bundle_2d, studies).infer("diffae_encode", "colour")
    assert response.status_code == 422
    assert "it has 3 channels (colour), expected 1" in response.json()["detail"]


def test_weights_that_vanish_or_change_are_answered(serve, bundle_3d, studies_3d):
    import torch

    server = serve(bundle_3d, studies_3d)
    weights = server.app.folder.bundle / "models" / "model.pt"
    content = weights.read_bytes()
    weights.unlink()
    response = server.infer("diffae_encode", "hippocampus_001")
    assert (response.status_code, "no models/model.pt" in response.json()["detail"]) == (400, True)
    torch.save({"other": torch.ones(3)}, weights)
    response = server.infer("diffae_encode", "hippocampus_001")
    assert (response.status_code, "do not fit" in response.json()["detail"]) == (400, True)
    weights.write_bytes(b"damaged")
    assert server.infer("diffae_encode", "hippocampus_001").status_code == 422
    weights.write_bytes(content)
    assert server.infer("diffae_encode", "hippocampus_001").status_code == 200
    assert server.client.get("/info/").status_code == 200


def test_an_app_without_a_trained_bundle_does_not_start(tiny_bundle, tmp_path):
    from monai_diffae.label import DiffAEApp
    from monai_diffae.label.app_folder import make_app_folder

    folder = make_app_folder(tmp_path / "app", tiny_bundle.directory, refer=False)
    (folder.bundle / "models" / "model.pt").unlink()
    with pytest.raises(ConfigError, match=r"bundle: there is no models/model\.pt"):
        DiffAEApp(str(folder.path), str(tmp_path), {})


def test_monai_labels_own_server_runs_the_app_with_the_same_checks(serve, bundle_3d, studies_3d):
    from fastapi.testclient import TestClient

    serve(bundle_3d, studies_3d)
    from monailabel.app import app as stock

    with TestClient(stock) as client:
        assert client.get("/info/").json()["models"].keys() == TASKS
        assert client.post("/infer/diffae_encode?image=hippocampus_001&output=json").status_code == 200
        for image, params in (("../x", {}), ("unknown", {}), ("hippocampus_001", {"image": "/etc/passwd"})):
            response = client.post(f"/infer/diffae_encode?image={image}", data={"params": json.dumps(params)})
            assert response.status_code in (400, 404)
            assert response.json()["detail"].startswith("image: ")
        assert client.post("/infer/wsi/diffae_encode?image=/etc/passwd").status_code == 404
        assert client.post("/train/diffae?run_sync=true", json={"max_epochs": 0}).status_code == 400


def test_requests_leave_no_files_behind(serve, bundle_3d, studies_3d, tmp_path, monkeypatch):
    import tempfile

    from monai_diffae.label import task

    server = serve(bundle_3d, studies_3d)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(task, "_answers_folder", lambda: str(temporary))
    source = studies_3d.source["hippocampus_001"]
    server.infer("diffae_reconstruct", "hippocampus_001", "image")
    server.infer("diffae_reconstruct", "hippocampus_001", "all")
    server.infer("diffae_reconstruct", "hippocampus_001", "image", result_dtype="int8")
    with open(source, "rb") as stream:
        server.client.post("/infer/diffae_reconstruct?output=image", files={"file": (source.name, stream)})
        server.client.post("/infer/unknown", files={"file": (source.name, stream)})
    server.client.post("/infer/diffae_reconstruct", files={"file": ("damaged.nii.gz", b"no scan")})
    assert list(temporary.iterdir()) == []
    assert [path for path in (server.app.folder.path / "sessions").rglob("*") if path.is_file()] == []
