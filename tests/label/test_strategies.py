"""Strategies: which images they propose on real scans, and what they remember."""

import shutil

import numpy as np
import pytest

pytest.importorskip("monailabel", reason="MONAI Label is not installed")

from label_scans import fill, shared

from monai_diffae import load_bundle
from monai_diffae.apps.embedding.index import EmbeddingIndex
from monai_diffae.label.strategies import DESCRIPTIONS

OWN = [f"diffae_{name}" for name in DESCRIPTIONS]


@pytest.fixture
def server(serve, bundle_3d, volumes, tmp_path):
    """A server with eight scored hippocampi."""
    studies = fill(tmp_path / "studies", {name: volumes[name] for name in list(volumes)[:8]})
    server = serve(bundle_3d, studies)
    server.client.post("/scoring/diffae_embed?run_sync=true")
    return server


def propose(server, strategy, **params):
    response = server.client.post(f"/activelearning/{strategy}", json=params)
    assert response.status_code == 200, response.text
    return response.json()


def save_label(server, id, **params):
    import json

    label = next(file for file in shared("hippocampus_msd/labels", f"{id}.nii.gz"))
    with open(label, "rb") as stream:
        response = server.client.put(
            f"/datastore/label?image={id}&tag=final",
            files={"label": (label.name, stream)},
            data={"params": json.dumps(params)},
        )
    assert response.status_code == 200, response.text


def codes(server):
    indexed = EmbeddingIndex(server.app.folder.index).read(load_bundle(server.app.folder.bundle, "cpu"))
    z = indexed.z_sem.astype(float)
    return indexed.ids, (z - z.mean(axis=0)) / z.std(axis=0)


@pytest.mark.parametrize(
    "strategy", ["diffae_diversity", pytest.param("diffae_mixed", marks=pytest.mark.slow), "random"]
)
def test_every_image_is_proposed_once_before_one_is_proposed_again(server, strategy):
    proposed = [propose(server, strategy)["id"] for _ in range(8)]
    assert sorted(proposed) == sorted(server.studies.source)
    assert propose(server, strategy)["id"] in proposed


def test_what_one_strategy_proposed_no_other_proposes(server):
    proposed = [propose(server, strategy, client_id="one")["id"] for strategy in OWN]
    assert len(set(proposed)) == len(OWN)


def test_labelled_images_are_not_proposed(server):
    for id in list(server.studies.source)[:6]:
        save_label(server, id)
    assert {propose(server, "diffae_diversity")["id"] for _ in range(4)} == set(list(server.studies.source)[6:])
    for id in list(server.studies.source)[6:]:
        save_label(server, id)
    assert propose(server, "diffae_diversity") == {}


def test_diversity_proposes_the_farthest_image(server):
    save_label(server, "hippocampus_001")
    ids, z = codes(server)
    distances = np.linalg.norm(z - z[ids.index("hippocampus_001")], axis=1)
    assert propose(server, "diffae_diversity")["id"] == ids[int(distances.argmax())]


def test_an_answer_has_what_viewers_need(server):
    answer = propose(server, "diffae_outlier")
    assert answer["path"] == str(server.studies.folder / answer["name"])
    assert answer["selection"] == {"scored": 8, "labelled": 0, "proposed": 0, "probe": None, "probe_labels": 0}


def test_the_probe_learns_volumes_from_label_maps_and_classes_from_params(server):
    names = list(server.studies.source)
    for name in names[:3]:
        save_label(server, name, label_info=[{"name": "anterior", "idx": 1}, {"name": "posterior", "idx": 2}])
    selection = propose(server, "diffae_uncertain")["selection"]
    assert (selection["probe"], selection["probe_labels"], selection["labelled"]) == ("volume", 3, 3)
    assert propose(server, "diffae_uncertain", target="anterior")["selection"]["probe_labels"] == 3
    refused = server.client.post("/activelearning/diffae_uncertain", json={"target": "liver"})
    assert (refused.status_code, "no label has a structure" in refused.json()["detail"]) == (400, True)
    save_label(server, names[0], **{"class": "left"})
    save_label(server, names[1], **{"class": "right"})
    selection = propose(server, "diffae_mixed")["selection"]
    assert (selection["probe"], selection["probe_labels"], selection["labelled"]) == ("class", 2, 3)


def test_uncertain_proposes_what_the_probe_cannot_tell(server):
    """Two classes at the ends of one axis: the proposed image is not beside a labelled one."""
    from monai_diffae.latents.selection import uncertainty

    ids, z = codes(server)
    order = np.argsort(z[:, 0])
    for row, name in ((order[0], "low"), (order[1], "low"), (order[-1], "high"), (order[-2], "high")):
        save_label(server, ids[row], **{"class": name})
    labelled = sorted(int(row) for row in (*order[:2], *order[-2:]))
    names = ["low" if row in order[:2] else "high" for row in labelled]
    scores = uncertainty(z, labelled, names, kind="classes")
    scores[labelled] = -1
    assert propose(server, "diffae_uncertain")["id"] == ids[int(scores.argmax())]


def test_without_scores_the_reason_is_given(serve, bundle_3d, studies_3d):
    server = serve(bundle_3d, studies_3d)
    response = server.client.post("/activelearning/diffae_diversity")
    assert response.status_code == 409
    assert "POST /scoring/diffae_embed" in response.json()["detail"]
    assert server.client.post("/activelearning/random").status_code == 200


@pytest.mark.parametrize("strategy", ["diffae_diversity", "random"])
def test_an_empty_folder_is_said_to_be_empty(serve, bundle_3d, tmp_path, strategy):
    server = serve(bundle_3d, fill(tmp_path / "studies", {}))
    response = server.client.post(f"/activelearning/{strategy}")
    assert (response.status_code, response.json()["detail"][:27]) == (404, "studies: there is no image;")
    assert server.client.post("/scoring/diffae_embed?run_sync=true").json()["images"] == 0


def test_new_files_are_noticed(server, volumes):
    shutil.copy(list(volumes.values())[9], server.studies.folder / "later.nii.gz")
    propose(server, "random")
    assert "later" in server.app.datastore().list_images()


@pytest.mark.parametrize(("strategy", "params"), [("diffae_diversity", {"target": "x"}), ("random", {"seed": 1})])
def test_unknown_options_and_strategies_are_refused(server, strategy, params):
    assert server.client.post(f"/activelearning/{strategy}", json=params).status_code == 400
    assert server.client.post("/activelearning/diffae_best").status_code == 404
