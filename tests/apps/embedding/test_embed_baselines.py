import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.decomposition import PCA
from tiny_bundles import rewrite, scaled
from torch import nn
from torchvision.models import squeezenet1_1

from monai_diffae import DiffAEEncoder, decode, edit, embed, fit_direction, load_bundle, neighbors, train_latent
from monai_diffae.apps.embedding import encoders
from monai_diffae.apps.embedding.encoders import open_backbone
from monai_diffae.apps.evaluation.baselines import table_features
from monai_diffae.apps.session import Session
from monai_diffae.apps.settings import Encoding
from monai_diffae.bundle.folders import init_bundle
from monai_diffae.bundle.loading import load_untrained
from monai_diffae.data.embeddings import label_columns, matrix, read_embeddings, z_matrix
from monai_diffae.data.fingerprints import file_checksum
from monai_diffae.errors import CohortError, ConfigError, MachineError
from monai_diffae.inferers.reconstruction import encode_exactly
from monai_diffae.latents.statistics import PixelComponents
from monai_diffae.networks import PatchWords

CONFIG = {"spatial_dims": 2, "in_channels": 1, "model_range": [-1, 1]}
SMALL = {"image_size": [16, 16], "base_channels": 4, "channel_mult": [1, 2], "z_channels": 5}
ENCODERS = ["untrained", "pca", "words", "planar"]


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """The arguments of each encoder; the weights are those of a small network of torchvision, and of another head."""
    torch.manual_seed(0)
    weights = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    torch.save(squeezenet1_1(weights=None, num_classes=3).state_dict(), weights)
    planar = {"weights": weights, "backbone": "squeezenet1_1", "layers": ["features.3"]}
    both = {"device": "cpu", "overrides": SMALL}
    return {name: {"encoder": name, **both, **(planar if name == "planar" else {})} for name in ENCODERS}


@pytest.fixture(scope="module")
def made(labelled, options, tmp_path_factory):
    """Tables of all encoders, made without a trained bundle."""
    root = tmp_path_factory.mktemp("made")
    return {name: embed("diffae_2d", labelled.cohort, root, **options[name]).path for name in ENCODERS}


def preprocessed(cohort, split=None):
    """The ids and images [N, P] of a cohort, as the bundle's training would prepare them."""
    session = Session.of(
        load_untrained("diffae_2d", "cpu", SMALL), cohort,
        **{"reading": encoders.Reading(), "run": encoders.Run(overrides=SMALL)},
    )  # fmt: skip
    cases = [case for case in session.cohort.cases if split in (None, case.split)]
    images = [session.trained.preprocessing(case.item())["image"].as_tensor() for case in cases]
    return [case.id for case in cases], torch.stack(images)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_table_says_what_made_it_and_the_same_command_gives_the_same_one(made, options, labelled, tmp_path, name):
    path = made[name]
    assert path.name == f"embeddings_{name}.parquet"
    table = read_embeddings(path)
    assert table["id"].tolist() == read_embeddings(labelled.embeddings)["id"].tolist()
    assert z_matrix(table).shape == (12, 6 if name == "planar" else 5)  # there are 7 training cases
    assert table["wide"].tolist() == pd.read_csv(labelled.cohort)["wide"].tolist()
    assert table.attrs["monai_diffae"]["made_from"]["encoder"] == name
    assert json.loads(path.with_suffix(".json").read_text())["made_from"]["encoder"] == name
    bundle = init_bundle(tmp_path / "bundle")  # a folder of init is as good as the name
    again = read_embeddings(embed(bundle, labelled.cohort, tmp_path / "out", **options[name]).path)
    pd.testing.assert_frame_equal(again, table)
    assert again.attrs["monai_diffae"] == table.attrs["monai_diffae"]
    assert embed(bundle, labelled.cohort, tmp_path / "out", **options[name]).skipped


def fitted_words(train):
    words = PatchWords([16, 16])
    words.fit(train[np.random.default_rng(0).permutation(len(train))])
    return words


@pytest.mark.parametrize("name", ["pca", "words"])
def test_components_are_those_of_the_training_images(made, labelled, name):
    (_, train), (ids, images) = preprocessed(labelled.cohort, "train"), preprocessed(labelled.cohort)
    features = fitted_words(train) if name == "words" else nn.Flatten()
    pca = PCA(5, svd_solver="full").fit(features(train).numpy())
    expected = pca.transform(features(images).numpy()) / np.sqrt(pca.explained_variance_.mean())
    table = read_embeddings(made[name]).set_index("id").loc[ids]
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
    for embeddings in (made["untrained"], made["planar"], copy):
        calls = [
            lambda e=embeddings: fit_direction(e, tmp_path / "d.json", target="wide"),
            lambda e=embeddings: decode(bundle, out, show="components", embeddings=e),
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
    with pytest.raises(CohortError, match="^principal components are fitted to training images, but only 0"):
        embed("diffae_2d", tmp_path / "test.csv", tmp_path / "o", **options)


def test_planar_features_are_named_by_backbone_and_checksum_and_not_standardised(made, options, labelled):
    made_from = read_embeddings(made["planar"]).attrs["monai_diffae"]["made_from"]
    assert made_from["backbone"] == "squeezenet1_1"
    assert made_from["weights"] == file_checksum(options["planar"]["weights"])
    assert str(options["planar"]["weights"].parent) not in made["planar"].with_suffix(".json").read_text()
    assert not table_features(read_embeddings(made["planar"]), "z").standardise
    (_, train), (ids, images) = preprocessed(labelled.cohort, "train"), preprocessed(labelled.cohort)
    network = open_backbone(Encoding(**{k: options["planar"][k] for k in ("weights", "backbone", "layers")}), CONFIG)
    components = PixelComponents.fit([network(train).numpy()], 1024)
    expected = components.features(network(images).numpy())
    z = z_matrix(read_embeddings(made["planar"]).set_index("id").loc[ids])
    np.testing.assert_allclose(np.abs(z), np.abs(expected), atol=2e-3)


@pytest.mark.parametrize(
    ("changed", "error", "text"),
    [
        ({"weights": None}, ConfigError, "weights: planar needs the file of a network's weights, as nothing is"),
        ({"encoder": "pca"}, ConfigError, "weights: are for the encoder planar; omit them, or set encoder to planar"),
        (
            {"backbone": "resnet18", "layers": []},
            ConfigError,
            "squeezenet.pth: the pretrained weights are not those",
        ),
        ({"backbone": "resnet19"}, ConfigError, "backbone: there is no 'resnet19'; name a network of torchvision"),
        ({"layers": []}, ConfigError, "layers: planar has no default for 'squeezenet1_1'; name some of its layers"),
        ({"backbone": "timm:absent"}, MachineError, "backbone: timm:absent needs the package timm: pip install timm"),
    ],
)
def test_a_backbone_that_cannot_be_used_is_one_line(options, labelled, tmp_path, monkeypatch, changed, error, text):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(error, match=f"^{text}.*$"):
        embed("diffae_2d", labelled.cohort, tmp_path, **{**options["planar"], **changed})


def test_a_network_of_timm_is_prepared_as_it_says(options, monkeypatch):
    def create_model(name, num_classes):
        network = squeezenet1_1(weights=None, num_classes=num_classes or 2)
        network.default_cfg = {"input_size": (3, 48, 48), "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}
        return network

    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))
    weights, layers = options["planar"]["weights"], ["features.3"]
    adapter = open_backbone(Encoding(weights=weights, backbone="timm:squeezenet", layers=layers), CONFIG)
    assert (adapter.size, adapter.mean.tolist(), adapter.out_features) == ([48, 48], [0.5] * 3, 9 * 128)
    assert torch.equal(adapter.network.features[0].weight, torch.load(weights)["features.0.weight"])


# -- wide features -----------------------------------------------------------------------------------------------------


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
    is_train = (table["split"] == "train").to_numpy()
    words = fitted_words(images[is_train])
    parts = [(features.numpy(), 1), (words(images).numpy(), 3)]
    features = np.concatenate([x * np.sqrt(v / x[is_train].var(axis=0).sum()) for x, v in parts], axis=1)
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
    rewrite(bundle, scaled(1.5))
    pd.read_csv(labelled.cohort).iloc[:3].to_csv(tmp_path / "few.csv", index=False)
    with pytest.raises(ConfigError, match="^features: wide features were not fitted for the present weights of bundle"):
        embed(bundle, tmp_path / "few.csv", tmp_path / "few", features="wide", device="cpu")


def test_neighbors_compare_wide_features(wide, labelled, tmp_path):
    results = [neighbors(wide[1], tmp_path / name, k=1, features=name).path for name in ("z", "wide")]
    nearest = pd.read_csv(results[1] / "neighbors.csv")
    table = read_embeddings(wide[1])
    values, ids = matrix(table, "wide"), table["id"].astype(str).tolist()
    distances = np.linalg.norm(values - values[ids.index(str(nearest["id"][0]))], axis=1)
    assert str(nearest["neighbor"][0]) == ids[np.argsort(distances)[1]]  # each patient has one scan
    other = shutil.copytree(wide[0], tmp_path / "bundle")
    rewrite(other, scaled(2), "wide.safetensors")
    queries = embed(other, labelled.cohort, tmp_path / "other", features="wide", device="cpu").path
    with pytest.raises(
        ConfigError, match="another model, pool or wide features than embeddings.parquet; embed both in the same way"
    ):
        neighbors(wide[1], tmp_path / "queried", queries=queries, features="wide")
    with pytest.raises(CohortError, match="no columns w_000, ...; embed again with features wide"):
        neighbors(labelled.embeddings, tmp_path / "none", features="wide")
