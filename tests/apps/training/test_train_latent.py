import json
import logging
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial.distance import cdist

from monai_diffae.apps.embedding.embed import embed
from monai_diffae.apps.training.train_latent import train_latent
from monai_diffae.bundle.folders import init_bundle
from monai_diffae.bundle.latent_ddim import load_latent
from monai_diffae.bundle.loading import load_bundle
from monai_diffae.data.embeddings import read_embeddings, z_matrix
from monai_diffae.data.file_checksums import file_checksum
from monai_diffae.errors import CohortError, ConfigError, ScanError
from monai_diffae.latents.statistics import LatentStatistics

QUICK = {
    "max_epochs": 2, "batch_size": 2, "val_interval": 1, "report_every": 1, "mlflow": False, "device": "cpu",
    "validate#additional_metrics#copying_ratio#num_samples": 8, "latent_network_def#num_layers": 3,
    "lr_schedule": "constant", "train#dataset#draws": 1,
}  # fmt: skip
LONGER = {**QUICK, "max_epochs": 3}


def copy_of(tiny_bundle, folder):
    shutil.copytree(tiny_bundle.directory, folder, ignore=shutil.ignore_patterns("cache"))
    return folder


@pytest.fixture(scope="module")
def trained_once(tiny_bundle, tmp_path_factory):
    bundle = copy_of(tiny_bundle, tmp_path_factory.mktemp("latent") / "bundle")
    train_latent(bundle, tiny_bundle.cohort, overrides=QUICK)
    return bundle


@pytest.fixture
def trained(trained_once, tmp_path):
    return shutil.copytree(trained_once, tmp_path / "trained")


def weights(folder):
    return torch.load(folder / "models" / "latent_model.pt", weights_only=True)


def test_the_files_of_a_training_and_the_autoencoder_as_it_was(trained, tiny_bundle):
    for name in ("model.pt", "config.json", "checkpoint.pt"):
        before = tiny_bundle.directory / "models" / name
        assert (trained / "models" / name).read_bytes() == before.read_bytes()
    assert (trained / "curves.csv").read_bytes() == (tiny_bundle.directory / "curves.csv").read_bytes()
    config = json.loads((trained / "models" / "latent_config.json").read_text())
    assert config.keys() >= {"latent_network_def", "latent_diffusion", "latent_inferer"}
    assert config["autoencoder_sha256"] == file_checksum(trained / "models" / "model.pt")
    assert config["z_channels"] == 8
    assert not {"embedded", "dataset_dir", "bundle_root", "embeddings"} & config.keys()
    curves = pd.read_csv(trained / "latent" / "curves.csv").dropna(subset=["validation_loss"])
    assert np.isfinite(curves[["validation_loss", "validation_copying_ratio"]].to_numpy()).all()
    assert len(curves) == 2


def test_the_statistics_are_those_of_the_training_cases(trained):
    table = read_embeddings(trained / "embeddings" / "embeddings.parquet")
    expected = LatentStatistics.of(z_matrix(table[table["split"] == "train"]))
    assert np.array_equal(weights(trained)["z_mean"].numpy(), expected.mean)
    assert np.array_equal(weights(trained)["z_std"].numpy(), expected.std)


def test_samples_of_a_loaded_model_can_be_decoded(trained):
    latent, bundle = load_latent(trained, "cpu"), load_bundle(trained, "cpu")
    z_sem = latent.inferer.sample(latent.network, 3, seed=1)
    assert torch.equal(latent.inferer.sample(latent.network, 1, seed=1, start=2)[0], z_sem[2])
    assert bundle.inferer.decode(z_sem, torch.zeros(3, 1, 16, 16), bundle.network).isfinite().all()


def test_more_epochs_resume_and_end_like_an_uninterrupted_run(trained, tiny_bundle, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="monai_diffae"):
        train_latent(trained, tiny_bundle.cohort, overrides=LONGER)
    assert "embeddings.parquet is complete" in caplog.text
    assert "resuming from step" in caplog.text
    ready = trained / "embeddings" / "embeddings.parquet"
    whole = train_latent(trained, embeddings=ready, out=tmp_path / "whole", overrides=LONGER).folder
    torch.testing.assert_close(weights(trained), weights(whole), rtol=0, atol=0)
    # it is a bundle of its own, without the embeddings
    assert load_latent(whole, "cpu").network.z_channels == load_bundle(whole, "cpu").network.z_channels
    assert not (whole / "embeddings").exists()


def test_a_bundle_that_configs_describe_needs_no_other_config(trained, tmp_path):
    (trained / "models" / "config.json").rename(trained / "configs" / "train.json")
    ready = trained / "embeddings" / "embeddings.parquet"
    out = train_latent(trained, embeddings=ready, out=tmp_path / "out", overrides=QUICK).folder
    assert load_latent(out, "cpu").network.z_channels == load_bundle(out, "cpu").z_channels


def test_a_validation_set_that_is_the_training_set_does_not_stop_it(trained, tmp_path, caplog):
    table = read_embeddings(trained / "embeddings" / "embeddings.parquet").query("split == 'train'")
    pd.concat([table, table.assign(split="val")]).to_parquet(tmp_path / "twice.parquet")
    shutil.copy(trained / "embeddings" / "embeddings.json", tmp_path / "twice.json")
    with caplog.at_level(logging.WARNING, logger="monai_diffae"):
        out = train_latent(trained, embeddings=tmp_path / "twice.parquet", out=tmp_path / "out", overrides=QUICK).folder
    assert caplog.text.count("copying_ratio is nan: held_out: half of the cases or more are in the training set") == 1
    assert pd.read_csv(out / "latent" / "curves.csv")["validation_copying_ratio"].isna().all()


def test_a_dimension_that_never_varies_does_not_stop_it(trained, tmp_path):
    table = read_embeddings(trained / "embeddings" / "embeddings.parquet").assign(z_003=0.5)
    table.to_csv(tmp_path / "dead.csv", index=False)
    shutil.copy(trained / "embeddings" / "embeddings.json", tmp_path / "dead.json")
    out = train_latent(trained, embeddings=tmp_path / "dead.csv", out=tmp_path / "out", overrides=QUICK).folder
    assert weights(out)["z_std"][3] == 1
    assert weights(out)["z_mean"][3] == 0.5


def test_a_training_does_not_resume_with_other_embeddings(trained, tmp_path):
    table = read_embeddings(trained / "embeddings" / "embeddings.parquet")
    table["z_000"] += 1
    table.to_parquet(tmp_path / "e.parquet")
    shutil.copy(trained / "embeddings" / "embeddings.json", tmp_path / "e.json")
    with pytest.raises(ConfigError, match=r"latent_checkpoint\.pt: was trained on other data"):
        train_latent(trained, embeddings=tmp_path / "e.parquet", overrides=LONGER)


def test_embeddings_of_another_autoencoder_or_of_none_are_refused(trained, tiny_bundle, tmp_path):
    ready = trained / "embeddings" / "embeddings.parquet"
    record = json.loads(ready.with_suffix(".json").read_text())
    record["made_from"]["model"] = "0" * 64
    ready.with_suffix(".json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=r"embeddings\.parquet: another autoencoder made it"):
        train_latent(trained, embeddings=ready, overrides=QUICK)
    ready.with_suffix(".json").unlink()
    with pytest.raises(ConfigError, match=r"no record embeddings\.json beside it"):
        train_latent(trained, embeddings=ready, overrides=QUICK)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_embeddings_of_other_preprocessing_are_refused(tiny_bundle, tmp_path, suffix):
    bundle, table = copy_of(tiny_bundle, tmp_path / "bundle"), tmp_path / f"e{suffix}"
    embed(bundle, tiny_bundle.cohort, table, overrides={"percentiles": [20, 60]}, device="cpu")
    expected = rf"e{suffix}: its scans were preprocessed in another way than the bundle does \(percentiles differ\)"
    with pytest.raises(ConfigError, match=expected):
        train_latent(bundle, embeddings=table, overrides=QUICK)
    assert not (bundle / "models" / "latent_model.pt").exists()


def test_a_latent_model_of_another_autoencoder_is_refused(trained):
    model = trained / "models" / "model.pt"
    state = torch.load(model, weights_only=True)
    torch.save({name: value + 0.01 for name, value in state.items()}, model)
    with pytest.raises(ConfigError, match="belongs to another autoencoder") as caught:
        load_latent(trained, "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no weights", None])
def test_unreadable_weights_are_one_line(trained, content):
    path = trained / "models" / "latent_model.pt"
    path.write_bytes(path.read_bytes()[:500] if content is None else content)
    with pytest.raises(ScanError, match=r"latent_model\.pt: cannot be read as weights"):
        load_latent(trained, "cpu")


def test_without_a_latent_model_it_says_how_to_train_one(tiny_bundle):
    with pytest.raises(ConfigError, match="there is no latent model; train it with monai-diffae train-latent"):
        load_latent(tiny_bundle.directory, "cpu")


def test_an_untrained_bundle_or_a_wrong_key_is_refused(tiny_bundle, trained, tmp_path):
    with pytest.raises(ConfigError, match=r"no models/model\.pt; train the bundle first"):
        train_latent(init_bundle(tmp_path / "new"), tiny_bundle.cohort)
    with pytest.raises(ConfigError, match="did you mean 'max_epochs'"):
        train_latent(trained, tiny_bundle.cohort, overrides={**QUICK, "max_epoch": 3})
    table = read_embeddings(trained / "embeddings" / "embeddings.parquet").drop(columns="split")
    table.to_parquet(tmp_path / "whole.parquet")
    shutil.copy(trained / "embeddings" / "embeddings.json", tmp_path / "whole.json")
    with pytest.raises(CohortError, match="have no case of the split 'train'"):
        train_latent(trained, embeddings=tmp_path / "whole.parquet", out=tmp_path / "out", overrides=QUICK)
    with pytest.raises(CohortError, match="gone"):
        train_latent(trained, tmp_path / "gone.csv", out=tmp_path / "out", overrides=QUICK)


def test_without_data_it_names_the_options_and_the_keys(run, trained):
    code, _, error = run("--quiet", "train-latent", trained, "--overrides", "max_epochs=1")
    assert code == 2
    assert error == (
        "error: --cohort: is required unless there are embeddings; give one of them (in a bundle run, dataset_dir or "
        "embeddings)\n"
    )


@pytest.mark.parametrize(("name", "value"), [("cohort", "cohort.csv"), ("columns", {"image": "file"}), ("workers", 2)])
def test_arguments_of_a_cohort_are_refused_beside_embeddings(trained, name, value):
    ready = trained / "embeddings" / "embeddings.parquet"
    with pytest.raises(ConfigError, match=f"^{name}: has no effect if there are embeddings; omit {name} or embedd"):
        train_latent(trained, embeddings=ready, **{name: value})


def test_a_scan_that_cannot_be_embedded_is_counted(trained, tiny_bundle, tmp_path):
    table = pd.read_csv(tiny_bundle.cohort)
    table["image"] = [str(tiny_bundle.cohort.parent / image) for image in table["image"]]
    (tmp_path / "bad.nii").write_bytes(b"bad")
    table.loc[0, "image"] = "bad.nii"
    table.to_csv(tmp_path / "cohort.csv", index=False)
    result = train_latent(trained, tmp_path / "cohort.csv", out=tmp_path / "out", overrides=QUICK)
    assert (result.num_failed, result.failures) == (1, tmp_path / "out" / "embeddings" / "failures.csv")
    assert result.incomplete is None
    assert result.num_cases == len(table)


def energy_distance(a, b):
    return 2 * cdist(a, b).mean() - cdist(a, a).mean() - cdist(b, b).mean()


def test_of_two_clusters_it_samples_both_which_a_gaussian_cannot(trained, tmp_path):
    rng = np.random.default_rng(0)
    side = rng.choice([-1, 1], (1200, 1))
    z = (side * np.arange(1, 5) + 0.3 * rng.normal(size=(1200, 4))).astype(np.float32)
    split = np.repeat(["train", "val", "test"], [600, 100, 500])
    table = pd.DataFrame({"id": range(1200), "split": split, **{f"z_{i:03d}": z[:, i] for i in range(4)}})
    table.to_parquet(tmp_path / "toy.parquet")
    (tmp_path / "toy.json").write_text((trained / "embeddings" / "embeddings.json").read_text())
    settings = {**QUICK, "latent_network_def#hidden_channels": 64, "max_epochs": 6, "batch_size": 100,
                "train#dataset#draws": 15, "val_interval": 6, "report_every": 100, "learning_rate": 3e-3}  # fmt: skip
    out = train_latent(trained, embeddings=tmp_path / "toy.parquet", out=tmp_path / "out", overrides=settings).folder
    latent = load_latent(out, "cpu")
    samples = latent.inferer.sample(latent.network, 500).numpy()
    train, held_out = z[split == "train"], z[split == "test"]
    gaussian = rng.multivariate_normal(train.mean(axis=0), np.cov(train.T), 500)
    assert energy_distance(samples, held_out) < energy_distance(gaussian, held_out) / 3
    assert 0.3 < (samples[:, 3] > 0).mean() < 0.7
