"""``train_latent``: the latent DDIM on embeddings, its statistics, its resumption and what it refuses."""

import logging
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial.distance import cdist
from tiny_bundles import TINY_LATENT

from monai_diffae import embed, train_latent
from monai_diffae.bundle.loading import load_bundle, load_latent
from monai_diffae.bundle.model_file import checksum, read_description, read_model
from monai_diffae.data.embeddings import read_embeddings, z_matrix
from monai_diffae.errors import ConfigError
from monai_diffae.latents.statistics import LatentStatistics

LONGER = {**TINY_LATENT, "max_epochs": 3}


@pytest.fixture(scope="module")
def trained_once(labelled, tmp_path_factory):
    """Trained on a cohort with one scan that cannot be read."""
    root = tmp_path_factory.mktemp("latent")
    bundle = shutil.copytree(labelled.bundle, root / "bundle", ignore=shutil.ignore_patterns("cache"))
    table = pd.read_csv(labelled.cohort)
    (root / "bad.nii").write_bytes(b"bad")
    table.loc[0, "image"] = str(root / "bad.nii")
    table.to_csv(root / "cohort.csv", index=False)
    result = train_latent(bundle, root / "cohort.csv", **TINY_LATENT)
    assert (result.folder, result.incomplete, result.num_cases) == (bundle, None, len(table))
    assert (result.num_failed, result.failures) == (1, bundle / "embeddings" / "failures.csv")
    return bundle


@pytest.fixture
def trained(trained_once, tmp_path):
    return shutil.copytree(trained_once, tmp_path / "trained")


def table_of(bundle):
    return bundle / "embeddings" / "embeddings.parquet"


def saved(table, trained, file):
    """A table of embeddings with the record of those of a bundle."""
    table.to_parquet(file)
    shutil.copy(table_of(trained).with_suffix(".json"), file.with_suffix(".json"))
    return file


def weights(folder):
    return read_model(folder / "models" / "latent_model.safetensors").tensors


def test_the_files_the_statistics_of_the_training_cases_and_the_autoencoder_as_it_was(trained_once, labelled):
    for name in ("models/model.safetensors", "curves.csv"):
        assert (trained_once / name).read_bytes() == (labelled.bundle / name).read_bytes()
    description = read_description(trained_once / "models" / "latent_model.safetensors")
    assert description.keys() >= {"latent_network_def", "latent_diffusion", "latent_inferer"}
    assert description["autoencoder_sha256"] == checksum(trained_once)
    assert description["z_channels"] == 8
    assert not {"embedded", "dataset_dir", "bundle_root", "embeddings"} & description.keys()
    curves = pd.read_csv(trained_once / "latent" / "curves.csv").dropna(subset=["validation_loss"])
    assert np.isfinite(curves[["validation_loss", "validation_copying_ratio"]].to_numpy()).all()
    assert len(curves) == 2
    table = read_embeddings(table_of(trained_once))
    expected = LatentStatistics.of(z_matrix(table[table["split"] == "train"]))
    assert np.array_equal(weights(trained_once)["z_mean"].numpy(), expected.mean)
    assert np.array_equal(weights(trained_once)["z_std"].numpy(), expected.std)


def test_more_epochs_resume_and_end_like_an_uninterrupted_run(trained, tmp_path, caplog):
    table = read_embeddings(table_of(trained))
    table["z_000"] += 1
    with pytest.raises(ConfigError, match=r"latent_checkpoint\.pt: was trained on other data"):
        train_latent(trained, embeddings=saved(table, trained, tmp_path / "other.parquet"), overrides=LONGER)
    with caplog.at_level(logging.INFO, logger="monai_diffae"):
        train_latent(trained, embeddings=table_of(trained), overrides=LONGER)
    assert "resuming from step" in caplog.text
    whole = train_latent(trained, embeddings=table_of(trained), out=tmp_path / "whole", overrides=LONGER).folder
    torch.testing.assert_close(weights(trained), weights(whole), rtol=0, atol=0)
    # it is a bundle of its own, without the embeddings
    assert load_latent(whole, "cpu").network.z_channels == load_bundle(whole, "cpu").network.z_channels
    assert not (whole / "embeddings").exists()


def test_embeddings_of_another_preprocessing_are_refused(labelled, tmp_path):
    table = tmp_path / "e.csv"
    embed(labelled.bundle, labelled.cohort, table, overrides={"percentiles": [20, 60]}, device="cpu")
    expected = r"e\.csv: its scans were preprocessed in another way than the bundle does \(percentiles differ\)"
    bundle = shutil.copytree(labelled.bundle, tmp_path / "bundle")
    with pytest.raises(ConfigError, match=expected):
        train_latent(bundle, embeddings=table, overrides=TINY_LATENT)
    assert not (bundle / "models" / "latent_model.safetensors").exists()


def test_arguments_that_do_not_fit_are_one_line(labelled):
    with pytest.raises(ConfigError, match="^cohort: has no effect if there are embeddings; omit cohort or embedd"):
        train_latent(labelled.bundle, labelled.cohort, embeddings=labelled.embeddings)
    with pytest.raises(ConfigError, match="^cohort: is required unless there are embeddings; give one of them"):
        train_latent(labelled.bundle, overrides={"max_epochs": 1})


def energy_distance(a, b):
    return 2 * cdist(a, b).mean() - cdist(a, a).mean() - cdist(b, b).mean()


@pytest.mark.slow
def test_with_two_clusters_it_samples_both_which_a_gaussian_cannot(trained, tmp_path):
    rng = np.random.default_rng(0)
    side = rng.choice([-1, 1], (1200, 1))
    z = (side * np.arange(1, 5) + 0.3 * rng.normal(size=(1200, 4))).astype(np.float32)
    split = np.repeat(["train", "val", "test"], [600, 100, 500])
    table = pd.DataFrame({"id": range(1200), "split": split, **{f"z_{i:03d}": z[:, i] for i in range(4)}})
    settings = {**TINY_LATENT, "latent_network_def#hidden_channels": 64, "max_epochs": 6, "batch_size": 100,
                "train#dataset#draws": 15, "val_interval": 6, "report_every": 100, "learning_rate": 3e-3}  # fmt: skip
    toy = saved(table, trained, tmp_path / "toy.parquet")
    latent = load_latent(train_latent(trained, embeddings=toy, out=tmp_path / "out", overrides=settings).folder, "cpu")
    samples = latent.inferer.sample(latent.network, 500).numpy()
    train, held_out = z[split == "train"], z[split == "test"]
    gaussian = rng.multivariate_normal(train.mean(axis=0), np.cov(train.T), 500)
    assert energy_distance(samples, held_out) < energy_distance(gaussian, held_out) / 3
    assert 0.3 < (samples[:, 3] > 0).mean() < 0.7
