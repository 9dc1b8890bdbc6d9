import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.decomposition import PCA

from monai_diffae.apps.embedding import baseline_encoders
from monai_diffae.apps.embedding.embed import embed
from monai_diffae.apps.evaluation.neighbors import neighbors
from monai_diffae.apps.session import Session
from monai_diffae.apps.synthesis.edit import edit
from monai_diffae.apps.synthesis.fit_direction import fit_direction
from monai_diffae.apps.synthesis.traverse import traverse
from monai_diffae.apps.training.train_latent import train_latent
from monai_diffae.bundle.folders import init_bundle
from monai_diffae.bundle.loading import load_untrained
from monai_diffae.data.embeddings import read_embeddings, z_matrix
from monai_diffae.errors import CohortError, ConfigError
from monai_diffae.inferers.reconstruction import encode_exactly

SMALL = {"image_size": [16, 16], "base_channels": 4, "channel_mult": [1, 2], "z_channels": 5}
ENCODERS = ["untrained", "pca"]


@pytest.fixture(scope="module")
def made(labelled, tmp_path_factory):
    """Tables of both encoders, made without a trained bundle."""
    root = tmp_path_factory.mktemp("made")
    options = {"device": "cpu", "overrides": SMALL}
    return {name: embed("diffae_2d", labelled.cohort, root, encoder=name, **options).path for name in ENCODERS}


def preprocessed(cohort, split=None):
    """The ids and images [N, P] of a cohort, as the bundle's training would prepare them."""
    session = Session.of(
        load_untrained("diffae_2d", "cpu", SMALL), cohort,
        **{"reading": baseline_encoders.Reading(), "run": baseline_encoders.Run(overrides=SMALL)},
    )  # fmt: skip
    cases = [case for case in session.cohort.cases if split in (None, case.split)]
    images = [session.trained.preprocessing(case.item())["image"].as_tensor() for case in cases]
    return [case.id for case in cases], torch.stack(images)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_table_says_what_made_it_and_the_same_command_gives_the_same_one(made, labelled, tmp_path, name):
    path = made[name]
    assert path.name == f"embeddings_{name}.parquet"
    table = read_embeddings(path)
    assert table["id"].tolist() == read_embeddings(labelled.embeddings)["id"].tolist()
    assert z_matrix(table).shape == (12, 5)
    assert table["wide"].tolist() == pd.read_csv(labelled.cohort)["wide"].tolist()
    assert table.attrs["monai_diffae"]["made_from"]["encoder"] == name
    assert json.loads(path.with_suffix(".json").read_text())["made_from"]["encoder"] == name
    options = {"encoder": name, "device": "cpu", "overrides": SMALL}
    bundle = init_bundle(tmp_path / "bundle")  # a folder of init is as good as the name
    again = read_embeddings(embed(bundle, labelled.cohort, tmp_path / "out", **options).path)
    pd.testing.assert_frame_equal(again, table)
    assert again.attrs["monai_diffae"] == table.attrs["monai_diffae"]
    assert embed(bundle, labelled.cohort, tmp_path / "out", **options).skipped


def test_components_are_those_of_the_training_images(made, labelled):
    (_, train), (ids, images) = preprocessed(labelled.cohort, "train"), preprocessed(labelled.cohort)
    pca = PCA(5, svd_solver="full").fit(train.flatten(1).numpy())
    expected = pca.transform(images.flatten(1).numpy()) / np.sqrt(pca.explained_variance_.mean())
    table = read_embeddings(made["pca"]).set_index("id").loc[ids]
    np.testing.assert_allclose(z_matrix(table), expected, atol=1e-3)


def test_the_untrained_encoder_is_that_of_the_bundle_with_random_weights(made, labelled, tmp_path):
    ids, images = preprocessed(labelled.cohort)
    untrained = load_untrained("diffae_2d", "cpu", SMALL)
    expected = encode_exactly(images, untrained.network, untrained.inferer)
    table = read_embeddings(made["untrained"]).set_index("id").loc[ids]
    np.testing.assert_array_equal(z_matrix(table), expected.numpy())
    options = {"encoder": "untrained", "device": "cpu", "overrides": SMALL}
    other = embed("diffae_2d", labelled.cohort, tmp_path, seed=1, **options).path
    assert (z_matrix(read_embeddings(other)) != z_matrix(table)).any(axis=1).all()


def test_with_a_trained_bundle_the_preprocessing_is_the_same(labelled, tmp_path):
    # twelve cases, of which fewer than eight components can be fitted, and a file of its own name
    path = embed(labelled.bundle, labelled.cohort, tmp_path / "x.csv", encoder="pca", device="cpu").path
    assert path.name == "x.csv"
    trained, pca = (read_embeddings(each).attrs["monai_diffae"] for each in (labelled.embeddings, path))
    assert pca["preprocessing"] == trained["preprocessing"]


def test_what_decodes_z_sem_refuses_the_table_in_one_line(made, labelled, tmp_path):
    bundle, cohort, out = labelled.bundle, labelled.cohort, tmp_path / "out"
    # even if the model were that of the bundle
    copy = shutil.copy(made["pca"], tmp_path / "t.parquet")
    records = [json.loads(path.with_suffix(".json").read_text()) for path in (made["pca"], labelled.embeddings)]
    records[0]["made_from"]["model"] = records[1]["made_from"]["model"]
    (tmp_path / "t.json").write_text(json.dumps(records[0]))
    for embeddings in (made["untrained"], copy):
        calls = [
            lambda e=embeddings: fit_direction(e, tmp_path / "d.json", target="wide"),
            lambda e=embeddings: traverse(bundle, e, out),
            lambda e=embeddings: train_latent(bundle, out=out, embeddings=e),
            lambda e=embeddings: edit(bundle, cohort, out, direction=labelled.direction, embeddings=e),
            lambda e=embeddings: neighbors(e, out, reconstruction_error=True, bundle=bundle, cohort=cohort),
        ]
        for call in calls:
            with pytest.raises(ConfigError, match=r"^.* was made with encoder \w+, so it has no z_sem.*$"):
                call()
    assert not out.exists()


def test_components_without_training_images_are_refused(labelled, tmp_path):
    options = {"encoder": "pca", "overrides": SMALL}
    pd.read_csv(labelled.cohort).assign(split="test").to_csv(tmp_path / "test.csv", index=False)
    with pytest.raises(CohortError, match="encoder: principal components are fitted to training images, but only 0"):
        embed("diffae_2d", tmp_path / "test.csv", tmp_path / "o", **options)
