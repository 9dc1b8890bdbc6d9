"""Wide features: fitted once to the training cases, the same for every cohort, taken by neighbors and scikit-learn."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.decomposition import PCA

from monai_diffae import DiffAEEncoder, embed, load_bundle, neighbors
from monai_diffae.bundle.model_file import read_model, write_model
from monai_diffae.data.embeddings import label_columns, matrix, read_embeddings, z_matrix
from monai_diffae.errors import CohortError, ConfigError
from monai_diffae.networks import OrientedGradients


@pytest.fixture(scope="module")
def wide(labelled, tmp_path_factory):
    """A copy of the bundle, the table that fitted its wide features, and the embedded cohort."""
    root = tmp_path_factory.mktemp("wide")
    bundle = shutil.copytree(labelled.bundle, root / "bundle")
    return bundle, embed(bundle, labelled.cohort, root / "embedded", features="wide", device="cpu").path


def test_wide_features_are_the_components_of_the_training_cases_features(wide, labelled):
    bundle, path = wide
    table, plain = read_embeddings(path), read_embeddings(labelled.embeddings)
    assert np.array_equal(z_matrix(table), z_matrix(plain))
    assert label_columns(table) == label_columns(plain)
    trained = load_bundle(bundle, "cpu")
    images = torch.stack([trained.open(file).images[0] for file in pd.read_csv(labelled.cohort)["image"]])
    with torch.no_grad():
        features = trained.network.encoder.features(images)
        gradients = OrientedGradients([16, 16])(images)
    parts = [part.numpy() for part in (features, gradients)]
    is_train = (table["split"] == "train").to_numpy()
    features = np.concatenate([part / np.sqrt(part[is_train].var(axis=0).sum()) for part in parts], axis=1)
    pca = PCA(int(is_train.sum()) - 1, svd_solver="full").fit(features[is_train])
    expected = pca.transform(features) / np.sqrt(pca.explained_variance_.mean())
    np.testing.assert_allclose(np.abs(matrix(table, "wide")), np.abs(expected), atol=2e-3)


def test_another_cohort_gets_the_same_components(wide, labelled, tmp_path):
    bundle, path = wide
    table = read_embeddings(path)
    pd.read_csv(labelled.cohort).iloc[:3].drop(columns="split").to_csv(tmp_path / "few.csv", index=False)
    few = read_embeddings(embed(bundle, tmp_path / "few.csv", tmp_path / "few", features="wide", device="cpu").path)
    same = table.set_index("id").loc[few["id"]]
    assert np.array_equal(matrix(few, "wide"), matrix(same, "wide"))
    encoder = DiffAEEncoder(bundle, features="wide", device="cpu")
    assert np.array_equal(encoder.fit_transform(pd.read_csv(tmp_path / "few.csv")["image"]), matrix(few, "wide"))
    assert encoder.get_feature_names_out().tolist()[:2] == ["w_000", "w_001"]


def test_without_components_of_the_present_weights_another_cohort_is_refused(wide, labelled, tmp_path):
    bundle = shutil.copytree(wide[0], tmp_path / "bundle")
    file = bundle / "models" / "model.safetensors"
    model = read_model(file, "autoencoder")
    tensors = {name: value * 1.5 if value.is_floating_point() else value for name, value in model.tensors.items()}
    write_model(file, "autoencoder", tensors, model.description)
    pd.read_csv(labelled.cohort).iloc[:3].to_csv(tmp_path / "few.csv", index=False)
    with pytest.raises(ConfigError, match="^features: wide features were not fitted for the present weights of bundle"):
        embed(bundle, tmp_path / "few.csv", tmp_path / "few", features="wide", device="cpu")


def test_neighbors_compare_wide_features(wide, labelled, tmp_path):
    results = [neighbors(wide[1], tmp_path / name, k=1, features=name).path for name in ("z", "wide")]
    nearest = pd.read_csv(results[1] / "neighbors.csv")
    table = read_embeddings(wide[1])
    values, ids = matrix(table, "wide"), table["id"].astype(str).tolist()
    distances = np.linalg.norm(values - values[ids.index(str(nearest["id"][0]))], axis=1)
    order = [
        ids[i]
        for i in np.argsort(distances)
        if table["patient"][i] != table["patient"][ids.index(str(nearest["id"][0]))]
    ]
    assert str(nearest["neighbor"][0]) == order[0]
    other = shutil.copytree(wide[0], tmp_path / "bundle")
    model = read_model(wide[0] / "models" / "wide.safetensors")
    tensors = {name: value * 2 for name, value in model.tensors.items()}
    write_model(other / "models" / "wide.safetensors", "wide", tensors, model.description)
    queries = embed(other, labelled.cohort, tmp_path / "other", features="wide", device="cpu").path
    with pytest.raises(ConfigError, match="has other wide features than embeddings.parquet; embed both again"):
        neighbors(wide[1], tmp_path / "queried", queries=queries, features="wide")
    with pytest.raises(CohortError, match="no columns w_000, ...; embed again with features wide"):
        neighbors(labelled.embeddings, tmp_path / "none", features="wide")
