"""A first stage, and the diffusion autoencoder on its latents: the same commands, outputs in image space."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from monai.bundle import ConfigParser, load
from tiny_bundles import TINY_KL, TINY_ON_LATENTS, copy_tiny, rewrite, tiny_cohort, weights

from monai_diffae import embed, reconstruct, train
from monai_diffae.bundle.folders import init_bundle
from monai_diffae.bundle.loading import load_bundle, load_first_stage
from monai_diffae.bundle.model_file import read_description, read_model
from monai_diffae.errors import ConfigError

ROOT = Path(__file__).parents[2]
OVERLAY = ROOT / "configs" / "latent_space.json"
SHAPE = (16, 16, 24)


def test_the_scale_is_that_of_whole_training_images_under_the_averaged_weights(tmp_path):
    cohort, bundle = tiny_cohort(tmp_path / "cohort", "kl"), init_bundle(tmp_path / "bundle", "autoencoder_kl_3d")
    train(bundle, cohort, overrides={**TINY_KL, "max_epochs": 2, "num_pictures": 2, "report_every": 1})
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    parser = ConfigParser(read_description(bundle / "models" / "model.safetensors"))
    first_stage = parser.get_parsed_content("network_def").eval()
    first_stage.load_state_dict(state)
    table = pd.read_csv(cohort)
    preprocessing = parser.get_parsed_content("preprocessing")
    files = [str(cohort.parent / image) for image in table[table["split"] == "train"]["image"]]
    latents = first_stage.encode(torch.stack([preprocessing({"image": file})["image"].as_tensor() for file in files]))
    assert latents.shape[1:] == first_stage.latent_shape((1, 16, 16, 24)) == (4, 8, 8, 12)
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3, 4)), torch.zeros(4), atol=0.02, rtol=0)
    assert float(latents.square().mean()) == pytest.approx(1, abs=0.02)
    checkpoint = torch.load(bundle / "models" / "checkpoint.pt", weights_only=True)
    assert torch.equal(checkpoint["network"]["latent_std"], state["latent_std"])
    curves = pd.read_csv(bundle / "curves.csv")
    assert curves["validation_loss"].dropna().gt(0).all()
    assert curves["validation_kl"].dropna().gt(0).all()
    assert (bundle / "pictures" / "latest.png").is_file()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The stored model on latents in ``bundle`` and its first stage, in folders that do not know of each other."""
    root = tmp_path_factory.mktemp("latent_space")
    table = pd.read_csv(tiny_cohort(root / "cohort", "kl"))
    table["image"] = [str(root / "cohort" / image) for image in table["image"]]
    table["wide"] = (table["ventricles"].rank() > len(table) / 2).map({True: "yes", False: "no"})
    table.to_csv(root / "cohort.csv", index=False)
    bundle = copy_tiny(root / "elsewhere" / "bundle", "3d_on_latents")
    embeddings = embed(bundle, root / "cohort.csv", root / "embedded", device="cpu").path
    return SimpleNamespace(
        bundle=bundle, first_stage=copy_tiny(root / "first_stage", "first_stage"), cohort=root / "cohort.csv",
        embeddings=embeddings, table=table,
    )  # fmt: skip


def test_the_bundle_holds_its_first_stage_and_no_path_and_encodes_latents(trained):
    own = weights(trained.first_stage)
    tensors = read_model(trained.bundle / "models" / "model.safetensors").tensors
    assert all(torch.equal(tensors[f"first_stage.{name}"], tensor) for name, tensor in own.items())
    for file in (trained.bundle / "configs").glob("*.json"):
        assert '"/' not in file.read_text()
    loaded = load_bundle(trained.bundle, "cpu")
    assert loaded.inferer.first_stage is not None
    assert loaded.inferer.clip_range is None
    assert loaded.image_shape == (1, *SHAPE)
    assert loaded.x_T_shape == (4, 8, 8, 12)
    assert not any(parameter.requires_grad for parameter in loaded.inferer.first_stage.parameters())
    first_stage = load_first_stage(trained.first_stage)
    images = torch.rand(2, 1, *SHAPE) * 2 - 1
    z_sem = loaded.network.encode(first_stage.encode(images))
    torch.testing.assert_close(loaded.inferer.encode(images, loaded.network), z_sem)


def test_an_opened_case_has_codes_of_latents_and_comes_back_to_its_scan(trained):
    loaded = load_bundle(trained.bundle, "cpu")
    case = loaded.open(trained.table["image"][0])
    embedded = pd.read_parquet(trained.embeddings)
    np.testing.assert_array_equal(case.z_sem[0], embedded.loc[0, [c for c in embedded if c.startswith("z_")]].to_list())
    assert case.x_T.shape == (1, *loaded.x_T_shape)
    mean, exact = case.reconstruct(draws=2), case.reconstruct("x_T", max_evaluations=0)
    assert mean.shape == exact.shape == (1, 1, *SHAPE)
    torch.testing.assert_close(case.decode(case.z_sem, case.x_T), case.reconstruct("x_T"))
    assert case.back(exact).shape == case.scan.array.shape
    assert case.back_map(torch.ones(1, 1, *SHAPE)).max() == pytest.approx(1)


def test_reconstruct_compares_with_the_images_and_with_the_first_stage_alone(trained, tmp_path):
    result = reconstruct(trained.bundle, trained.cohort, tmp_path, mode="both", limit=2, device="cpu")
    table = pd.read_csv(tmp_path / "reconstructions.csv")
    assert {"mse_x_T", "mse_z_sem", "mse_first_stage", "psnr_first_stage", "ssim_first_stage"} <= set(table)
    assert (table["mse_first_stage"] > 0).all()
    source = nib.load(trained.table["image"][0])
    for mode in ("x_T", "z_sem"):
        made = nib.load(result.folder / mode / f"{trained.table['id'][0]}.nii.gz")
        assert made.shape == source.shape
        assert np.array_equal(made.affine, source.affine)


def test_monai_loads_the_network_with_the_first_stage_in_the_model(trained):
    for kind in ("train", "inference"):
        network = load(trained.bundle.name, bundle_dir=trained.bundle.parent, workflow_type=kind, device="cpu")
        torch.testing.assert_close(dict(network.state_dict()), weights(trained.bundle), rtol=0, atol=0)


def change_first_stage(bundle, latent_std=None):
    rewrite(bundle, lambda state: state | {"latent_std": state["latent_std"] * 2 if latent_std is None else latent_std})


def test_what_is_no_first_stage_is_refused(trained, tiny_bundle, tmp_path):
    with pytest.raises(ConfigError, match="bundle: is no first stage but 'autoencoder'"):
        load_first_stage(tiny_bundle.directory)
    with pytest.raises(ConfigError, match="holds a first stage, not a diffusion autoencoder; choose another"):
        load_bundle(trained.first_stage, "cpu")
    shutil.copytree(trained.first_stage, tmp_path / "first")
    change_first_stage(tmp_path / "first", torch.tensor(torch.nan))
    with pytest.raises(ConfigError, match="the scale of its latents is not measured yet"):
        load_first_stage(tmp_path / "first")


def start(trained, out, **overrides):
    values = {**TINY_ON_LATENTS, "num_pictures": 1, "first_stage_bundle": str(trained.first_stage), **overrides}
    return train(trained.bundle, trained.cohort, out, overlays=[OVERLAY], overrides=values)


@pytest.mark.slow
def test_a_training_resumes_only_with_the_same_first_stage(trained, tmp_path, caplog):
    start(trained, tmp_path / "out", percentiles=[2, 98])
    assert "the first stage was trained with other values of percentiles" in caplog.text
    before = (tmp_path / "out" / "models" / "model.safetensors").read_bytes()
    shutil.copytree(trained.first_stage, tmp_path / "other")
    change_first_stage(tmp_path / "other")
    settings = {"percentiles": [2, 98], "max_epochs": 2}
    with pytest.raises(ConfigError, match="another model with other values of first_stage_sha256"):
        start(trained, tmp_path / "out", first_stage_bundle=str(tmp_path / "other"), **settings)
    assert (tmp_path / "out" / "models" / "model.safetensors").read_bytes() == before
    start(trained, tmp_path / "out", **settings)
    assert len(pd.read_csv(tmp_path / "out" / "curves.csv")["validation_loss"].dropna()) == 2


@pytest.mark.slow
def test_a_training_on_cached_latents_is_the_same(trained, tmp_path):
    """Losses, probes, weights, pictures and calibration, and nothing is left of the cache."""
    settings = {
        "augmentation": None, "max_epochs": 2, "val_interval": 1, "probe_interval": 1, "calibration_cases": 2,
        "precision": "fp32",  # with bf16, only a training without the cache encodes in bf16
    }  # fmt: skip
    table = pd.read_csv(trained.cohort)
    table.loc[table.index[table["split"] == "train"][0], "split"] = "val"  # calibration needs two patients
    table.to_csv(tmp_path / "cohort.csv", index=False)
    made, on = {}, SimpleNamespace(**{**vars(trained), "cohort": tmp_path / "cohort.csv"})
    for cached in (False, True):
        made[cached] = tmp_path / str(cached)
        start(on, made[cached], cache_latents=cached, **settings)
    before, after = (pd.read_csv(out / "curves.csv") for out in made.values())
    columns = [name for name in before if "loss" in name or "usage" in name or "probe" in name]
    assert len(columns) > 3
    pd.testing.assert_frame_equal(after[columns], before[columns], check_exact=True)
    files = ["pictures/latest.png", "models/model.pt", "models/model.safetensors"]
    for name in files:
        assert (made[True] / name).read_bytes() == (made[False] / name).read_bytes(), name
    assert all((out / "models" / "anomaly.safetensors").is_file() for out in made.values())
    assert not (made[True] / "cache" / "latents").exists()
