"""Batch inference."""

import numpy as np
import pytest

pytest.importorskip("monailabel", reason="MONAI Label is not installed")


def batch(server, model, **params):
    return server.client.post(f"/batch/infer/{model}?run_sync=true", json=params)


def test_one_broken_image_does_not_end_the_batch(serve, bundle_3d, studies_3d):
    (studies_3d.folder / "empty.nii.gz").write_bytes(b"")
    server = serve(bundle_3d, studies_3d)
    results = batch(server, "diffae_encode").json()
    assert results.keys() == {*studies_3d.source, "empty"}
    assert "the file is empty" in results["empty"]["error"]
    for id in studies_3d.source:
        assert np.shape(results[id]["params"]["z_sem"]) == (1, 8)


def test_masks_become_labels_with_the_tag_original(serve, bundle_3d, studies_3d):
    server = serve(bundle_3d, studies_3d)
    stock = {"device": "cuda", "multi_gpu": True, "gpus": "all", "logging": "WARNING", "save_label": True,
             "label_tag": "original", "max_workers": 1, "max_batch_size": 0}  # fmt: skip
    results = batch(server, "diffae_anomaly", **stock).json()  # what MONAI Label sends by default
    assert results.keys() == set(studies_3d.source)
    assert all(result["tag"] == "original" for result in results.values())
    status = server.client.get("/info/").json()["datastore"]
    assert status["label_tags"] == {"original": 4}
    assert status["completed"] == 0


def test_some_images_can_be_chosen(serve, bundle_3d, studies_3d):
    server = serve(bundle_3d, studies_3d)
    assert batch(server, "diffae_encode", images=["series-1"]).json().keys() == {"series-1"}
    assert len(batch(server, "diffae_encode", max_batch_size=2).json()) == 2
    assert batch(server, "diffae_encode", images=["../x"]).status_code == 400
    assert "no image with this id" in batch(server, "diffae_encode", images=["unknown"]).json()["unknown"]["error"]
    assert batch(server, "diffae_encode", label_tag="../../x").status_code == 400
    assert batch(server, "unknown").status_code == 404
