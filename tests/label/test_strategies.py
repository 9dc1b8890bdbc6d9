"""Active learning: the scoring ``diffae_embed``, what labels say about images, and which images strategies propose."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from label_scans import fill
from PIL import Image
from scan_files import shared

from monai_diffae import EmbeddingIndex, load_bundle
from monai_diffae.data.scans import write_scan
from monai_diffae.errors import ConfigError
from monai_diffae.label.datastore import FolderDatastore
from monai_diffae.label.strategies import DESCRIPTIONS, label_targets, structure_sizes

OWN = [f"diffae_{name}" for name in DESCRIPTIONS]
STRUCTURES = [{"name": "anterior", "idx": 1}, {"name": "posterior", "idx": 2}]


def label_map(id):
    return shared(f"hippocampus_msd/labels/{id}.nii.gz")


@pytest.fixture
def server(serve, bundle_3d, volumes, tmp_path):
    """A server with six scored hippocampi."""
    server = serve(bundle_3d, fill(tmp_path / "studies", {name: volumes[name] for name in list(volumes)[:6]}))
    server.score()
    return server


def propose(server, strategy, **params):
    response = server.client.post(f"/activelearning/{strategy}", json=params)
    assert response.status_code == 200, response.text
    return response.json()


def save_label(server, id, **params):
    label = {"label": (f"{id}.nii.gz", label_map(id).read_bytes())}
    response = server.client.put(
        f"/datastore/label?image={id}&tag=final", files=label, data={"params": json.dumps(params)}
    )
    assert response.status_code == 200, response.text


def codes(server):
    indexed = EmbeddingIndex(server.app.folder.index).read(load_bundle(server.app.folder.bundle, "cpu"))
    z = indexed.z_sem.astype(float)
    return indexed.ids, (z - z.mean(axis=0)) / z.std(axis=0)


def test_only_new_images_are_encoded_and_only_if_there_are_some(serve, bundle_3d, studies_3d, volumes):
    server = serve(bundle_3d, studies_3d)
    (scoring,) = server.app._scoring_methods.values()
    assert not scoring.is_current(server.app.datastore())
    assert server.score() == {"images": 4, "new": 4, "changed": 0, "removed": 0, "failed": {}}
    assert scoring.is_current(server.app.datastore())
    assert server.app.async_scoring(None) == {}
    assert server.score()["new"] == 0
    shutil.copy(list(volumes.values())[5], studies_3d.folder / "added.nii.gz")
    server.app.datastore().refresh()
    assert not scoring.is_current(server.app.datastore())
    assert server.score() == {"images": 5, "new": 1, "changed": 0, "removed": 0, "failed": {}}
    refused = server.client.post("/scoring/diffae_embed?run_sync=true", json={"folder": "/etc"})
    assert (refused.status_code, refused.json()["detail"]) == (400, "params: 'folder' is unknown; use method")


def test_a_broken_scan_is_reported_and_the_others_are_served(serve, bundle_3d, studies_3d, pictures):
    (studies_3d.folder / "empty.nii.gz").write_bytes(b"")
    shutil.copy(next(iter(pictures.values())), studies_3d.folder / "picture.jpeg")
    server = serve(bundle_3d, studies_3d)
    result = server.score()
    assert (result["images"], result["failed"].keys()) == (4, {"empty", "picture"})
    assert "the file is empty" in result["failed"]["empty"]
    assert "expected a 3D volume" in result["failed"]["picture"]
    assert not any("\n" in reason for reason in result["failed"].values())
    assert {propose(server, "diffae_diversity")["id"] for _ in range(4)} == set(studies_3d.source)
    assert server.infer("diffae_encode", "empty").status_code == 422
    assert server.infer("diffae_encode", "series-1").status_code == 200


@pytest.mark.parametrize("strategy", ["diffae_diversity", "random"])
def test_every_image_is_proposed_once_before_one_is_proposed_again(server, strategy):
    proposed = [propose(server, strategy)["id"] for _ in range(6)]
    assert sorted(proposed) == sorted(server.studies.source)
    assert propose(server, strategy)["id"] in proposed


def test_what_one_strategy_proposed_no_other_proposes(server):
    answer = propose(server, "diffae_outlier", client_id="one")
    assert answer["path"] == str(server.studies.folder / answer["name"])
    assert answer["selection"] == {"scored": 6, "labelled": 0, "proposed": 0, "probe": None, "probe_labels": 0}
    others = [propose(server, name, client_id="one")["id"] for name in OWN if name != "diffae_outlier"]
    assert len({answer["id"], *others}) == len(OWN)


def test_diversity_proposes_the_farthest_image_and_no_labelled_one(server, volumes):
    first, *others = server.studies.source
    save_label(server, first)
    ids, z = codes(server)
    distances = np.linalg.norm(z - z[ids.index(first)], axis=1)
    assert propose(server, "diffae_diversity")["id"] == ids[int(distances.argmax())]
    for id in others[:3]:
        save_label(server, id)
    for _ in range(3):
        assert propose(server, "diffae_diversity")["id"] in others[3:]
    for id in others[3:]:
        save_label(server, id)
    assert propose(server, "diffae_diversity") == {}
    shutil.copy(list(volumes.values())[9], server.studies.folder / "later.nii.gz")
    assert propose(server, "random")["id"] == "later"


def test_the_probe_learns_volumes_from_label_maps_and_classes_from_params(server):
    names = list(server.studies.source)
    for name in names[:3]:
        save_label(server, name, label_info=STRUCTURES)
    selection = propose(server, "diffae_uncertain")["selection"]
    assert (selection["probe"], selection["probe_labels"], selection["labelled"]) == ("volume", 3, 3)
    assert propose(server, "diffae_uncertain", target="anterior")["selection"]["probe_labels"] == 3
    refused = server.client.post("/activelearning/diffae_uncertain", json={"target": "liver"})
    assert (refused.status_code, "no label has a structure" in refused.json()["detail"]) == (400, True)
    save_label(server, names[0], **{"class": "left"})
    save_label(server, names[1], **{"class": "right"})
    selection = propose(server, "diffae_mixed")["selection"]
    assert (selection["probe"], selection["probe_labels"], selection["labelled"]) == ("class", 2, 3)


def test_without_scores_or_images_the_reason_is_given(serve, bundle_3d, studies_3d, tmp_path):
    client = serve(bundle_3d, studies_3d).client
    for task in ("/activelearning/diffae_diversity", "/infer/diffae_neighbors?image=hippocampus_001"):
        response = client.post(task)
        assert (response.status_code, "POST /scoring/diffae_embed" in response.json()["detail"]) == (409, True)
    assert client.post("/activelearning/random").status_code == 200
    for strategy, params, status in (("diffae_diversity", {"target": "x"}, 400), ("random", {"seed": 1}, 400),
                                     ("diffae_best", {}, 400)):  # fmt: skip
        assert client.post(f"/activelearning/{strategy}", json=params).status_code == status
    server = serve(bundle_3d, fill(tmp_path / "empty", {}))
    for strategy in ("diffae_diversity", "random"):
        response = server.client.post(f"/activelearning/{strategy}")
        assert (response.status_code, response.json()["detail"][:27]) == (404, "studies: there is no image;")
    assert server.score()["images"] == 0


def test_labels_give_volumes_of_structures_and_classes(tmp_path, volumes):
    names = list(volumes)[:3]
    datastore = FolderDatastore(str(fill(tmp_path / "studies", {name: volumes[name] for name in names}).folder))
    for name in names[:2]:
        datastore.save_label(name, str(label_map(name)), "final", {"label_info": STRUCTURES})
    kind, whole = label_targets(datastore, names[:2])
    assert (kind, list(whole)) == ("volume", names[:2])
    _, anterior = label_targets(datastore, names[:2], "anterior")
    _, posterior = label_targets(datastore, names[:2], "2")
    for name in names[:2]:
        sizes = structure_sizes(label_map(name))
        assert (anterior[name], posterior[name]) == (sizes[1], sizes[2])
        assert whole[name] == pytest.approx(anterior[name] + posterior[name])
        assert 0.1 < anterior[name] < 5  # ml
    for structure in ("liver", "²"):  # a digit that is no number
        with pytest.raises(ConfigError, match=f"no label has a structure '{structure}'"):
            label_targets(datastore, names[:2], structure)
    datastore.update_label_info(names[0], "final", {"class": "left"})
    assert label_targets(datastore, names[:2]) == ("class", {names[0]: "left"})
    assert label_targets(datastore, names[:2], "volume")[0] == "volume"
    assert label_targets(datastore, [], "class") == ("class", {})
    Path(datastore.get_label_uri(names[1], "final")).write_bytes(b"no label")  # a damaged one is left out
    assert list(label_targets(datastore, names[:2], "volume")[1]) == names[:1]


def test_sizes_have_units(tmp_path):
    array = np.zeros((1, 10, 10, 10))
    affine = np.diag([2.0, 1.0, 5.0, 1.0])
    assert structure_sizes(write_scan(tmp_path / "empty.nii.gz", array, affine, dtype=np.uint8)) == {}
    array[0, :2, :5, :1] = 1
    array[0, 5, 5, 5] = 3
    volume = write_scan(tmp_path / "volume.nii.gz", array, affine, dtype=np.uint8)
    assert structure_sizes(volume) == {1: pytest.approx(0.1), 3: pytest.approx(0.01)}  # ml
    array[0, 5, 5, 5] = np.nan
    assert structure_sizes(write_scan(tmp_path / "nan.nii.gz", array, affine)) == {1: pytest.approx(0.1)}
    picture = np.zeros((20, 20), np.uint8)
    picture[:10] = 7
    opaque = np.full_like(picture, 255)
    pictures = {7: picture, 1: np.stack([picture] * 3 + [opaque], axis=-1)}
    for value, pixels in pictures.items():
        Image.fromarray(pixels).save(tmp_path / "picture.png")
        assert structure_sizes(tmp_path / "picture.png") == {value: pytest.approx(2.0)}  # cm2 for pixels of 1 mm
