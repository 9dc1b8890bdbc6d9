"""``diffae_encode`` and ``diffae_neighbors``."""

import numpy as np
import pytest

pytest.importorskip("monailabel", reason="MONAI Label is not installed")

from monai_diffae import load_bundle
from monai_diffae.apps.embedding.index import EmbeddingIndex


def test_codes_are_those_of_the_bundle(serve, bundle_3d, studies_3d):
    server = serve(bundle_3d, studies_3d)
    trained = load_bundle(bundle_3d, "cpu")
    for id, source in studies_3d.source.items():
        answer = server.infer("diffae_encode", id).json()
        np.testing.assert_array_equal(np.float32(answer["z_sem"]), trained.open(source).z_sem.numpy())
        assert (answer["slices"], answer["model"]) == ([None], trained.sha256)


def test_a_volume_in_a_2d_bundle_has_a_code_per_slice(serve, bundle_2d, studies_3d):
    server = serve(bundle_2d, studies_3d)
    answer = server.infer("diffae_encode", "hippocampus_001").json()
    assert len(answer["z_sem"]) == len(answer["slices"]) > 5
    one = server.infer("diffae_encode", "hippocampus_001", slice=answer["slices"][3]).json()
    assert one["z_sem"] == [answer["z_sem"][3]]


def test_neighbors_are_the_nearest_of_the_datastore(serve, bundle_3d, studies_3d):
    server = serve(bundle_3d, studies_3d)
    refused = server.infer("diffae_neighbors", "hippocampus_001")
    assert refused.status_code == 409
    assert "POST /scoring/diffae_embed" in refused.json()["detail"]
    assert server.client.post("/scoring/diffae_embed?run_sync=true").json()["images"] == 4
    indexed = EmbeddingIndex(server.app.folder.index).read(load_bundle(server.app.folder.bundle, "cpu"))
    z = (indexed.z_sem - indexed.z_sem.mean(axis=0)) / indexed.z_sem.std(axis=0)
    distances = np.linalg.norm(z - z[indexed.ids.index("hippocampus_001")], axis=1)
    expected = [indexed.ids[i] for i in np.argsort(distances)[1:]]
    neighbors = server.infer("diffae_neighbors", "hippocampus_001", k=2).json()["neighbors"]
    assert [each["id"] for each in neighbors] == expected[:2]
    np.testing.assert_allclose([each["distance"] for each in neighbors], np.sort(distances)[1:3], rtol=1e-4)
    assert len(server.infer("diffae_neighbors", "hippocampus_001", k=100).json()["neighbors"]) == 3
    assert server.infer("diffae_neighbors", "hippocampus_001", k=0).status_code == 400


def test_an_uploaded_scan_has_neighbors_too(serve, bundle_3d, studies_3d):
    server = serve(bundle_3d, studies_3d)
    server.client.post("/scoring/diffae_embed?run_sync=true")
    source = studies_3d.source["hippocampus_001"]
    with open(source, "rb") as stream:
        response = server.client.post("/infer/diffae_neighbors", files={"file": (source.name, stream)})
    nearest = response.json()["neighbors"][0]
    assert (nearest["id"], nearest["distance"]) == ("hippocampus_001", pytest.approx(0, abs=1e-6))
