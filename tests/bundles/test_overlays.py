"""Each shipped overlay trains for an epoch on the kind of data that it is for; so do encoders of other packages."""

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from complaints import complaint
from monai.networks.nets import resnet18
from tiny_bundles import TINY, TINY_3D

from monai_diffae.apps.embedding.embed import embed
from monai_diffae.apps.training.train import train
from monai_diffae.bundle import init_bundle, load_bundle, trusting
from monai_diffae.data.samples import medmnist_to_cohort
from monai_diffae.errors import UnsafeInputError

ROOT = Path(__file__).parents[2]
# latent_space is for volumes and a first stage: test_latent_space.py
OVERLAYS = sorted(path for path in (ROOT / "configs").glob("*.json") if path.stem != "latent_space")
SETTINGS = {2: {**TINY, "num_pictures": 2}}
SETTINGS[3] = {**TINY_3D, **SETTINGS[2], "image_size": [8, 12, 8], "spacing_mm": [3.0, 3.0, 3.0]}
PAPER = {key: value for key, value in SETTINGS[2].items() if key != "channel_mult" and "#" not in key} | {
    "image_size": [64, 64], "base_channels": 16  # all their levels and attention, fewer channels
}  # fmt: skip

TUTORIAL = {key: value for key, value in SETTINGS[2].items() if "#" not in key} | {
    "network_def#unet#channels": [32, 32, 32], "network_def#unet#num_head_channels": 16
}  # fmt: skip


def volumes(folder, low, high):
    """Six patients' volumes with noise between two intensities."""
    rng = np.random.default_rng(0)
    for i in range(6):
        image = nib.Nifti1Image(rng.uniform(low, high, (20, 24, 12)).astype(np.float32), np.diag([1.0, 1, 3, 1]))
        nib.save(image, folder / f"sub-{i}.nii.gz")
    return folder


def medmnist(folder):
    rng = np.random.default_rng(0)
    counts = {"train": 8, "val": 4, "test": 4}
    images = {f"{s}_images": rng.integers(0, 256, (n, 28, 28), dtype=np.uint8) for s, n in counts.items()}
    labels = {f"{s}_labels": rng.integers(0, 2, (n, 1), dtype=np.uint8) for s, n in counts.items()}
    np.savez(folder / "set.npz", **images, **labels)
    return medmnist_to_cohort(folder / "set.npz", folder / "cohort")


def each_overlay():
    """One is enough for the quick tests: its encoder sees another image than the decoder."""
    quick = "encoder_view"
    return [pytest.param(p, id=p.stem, marks=[] if p.stem == quick else [pytest.mark.slow]) for p in OVERLAYS]


@pytest.mark.parametrize("overlay", each_overlay())
def test_overlay_trains_and_loads(overlay, small_cohort, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    cohort = {
        "ct": lambda: volumes(data, -1000, 1500),
        "volumes_mr": lambda: volumes(data, 0, 900),
        "medmnist": lambda: medmnist(data),
        "embed_volumes": lambda: volumes(data, 0, 900),
        "encoder_view_3d": lambda: volumes(data, 0, 900),
        "anchored_3d": lambda: volumes(data, 0, 900),
    }.get(overlay.stem, lambda: small_cohort)()
    dims = json.loads(overlay.read_text()).get("spatial_dims", 2)
    directory = init_bundle(tmp_path / "bundle", f"diffae_{dims}d")
    settings = PAPER if overlay.stem.startswith("paper") else SETTINGS[dims]
    settings = {
        "monai_tutorial": TUTORIAL, "anchored_asymmetry": {**settings, "anchored_channels": 4}
    }.get(overlay.stem, settings)  # fmt: skip
    train(directory, cohort, overlays=[directory / "configs" / "overlays" / overlay.name], overrides=settings)
    losses = pd.read_csv(directory / "curves.csv")["validation_loss"].tolist()
    assert np.isfinite(losses[-1])  # the last row is the last validation's
    assert (directory / "pictures" / "latest.png").is_file()
    trained = load_bundle(directory, "cpu")
    z_sem = trained.inferer.encode(torch.zeros(1, 1, *settings["image_size"]), trained.network)
    assert torch.isfinite(z_sem).all()


def test_the_encoder_sees_other_sequences_than_the_decoder_makes(small_cohort, tmp_path):
    table = pd.read_csv(small_cohort)
    images = [str(small_cohort.parent / image) for image in table["image"]]
    table = table.assign(image=images, T2=images, FLAIR=images).rename(columns={"image": "T1"})
    table.to_csv(tmp_path / "scans.csv", index=False)
    bundle = init_bundle(tmp_path / "bundle", "diffae_2d")
    overrides = {**SETTINGS[2], "encoder_sequences": ["T2", "FLAIR"]}
    overlays = [bundle / "configs" / "overlays" / "words.json"]  # of what the encoder sees
    train(bundle, tmp_path / "scans.csv", sequences=["T1"], overlays=overlays, overrides=overrides)
    trained = load_bundle(bundle, "cpu")
    assert (trained.network.encoder_in_channels, trained.image_shape[0]) == (2, 1)
    embedded = pd.read_parquet(embed(bundle, tmp_path / "scans.csv", tmp_path / "out", device="cpu").path)
    case = trained.open(dict.fromkeys(("T1", "T2", "FLAIR"), images[0]))
    rows = embedded.set_index("id").filter(regex="^z_")
    np.testing.assert_array_equal(case.z_sem.numpy()[0], rows.loc[case.id].to_numpy())


PAGE = ROOT / "docs" / "encoders.md"


def block(name, folder):
    """A JSON block of the page, by the file name that the page gives it."""
    blocks = dict(re.findall(r"ave this as `(\w+)\.json`:\n\n```json\n(.*?)```", PAGE.read_text(), flags=re.S))
    path = folder / f"{name}.json"
    path.write_text(blocks[name])
    return path


@pytest.mark.slow
def test_a_frozen_network_is_trained_on(tiny_settings, small_cohort, tmp_path):
    torch.manual_seed(1)
    network = {"_target_": "monai.networks.nets.resnet18", "spatial_dims": "@spatial_dims", "n_input_channels": 3}
    pretrained = resnet18(spatial_dims=2, n_input_channels=3, feed_forward=False).state_dict()
    torch.save(pretrained, tmp_path / "resnet18.pt")
    settings = {
        **tiny_settings, "network_def#encoder#size": [32, 32], "network_def#encoder#head": None,
        "network_def#encoder#network": {**network, "feed_forward": False},
        "encoder_weights": str(tmp_path / "resnet18.pt"),
    }  # fmt: skip
    overlays, bundle = [block("frozen", tmp_path)], init_bundle(tmp_path / "bundle", "diffae_2d")
    with pytest.raises(UnsafeInputError, match="^bundle: train.json, frozen.json is not trusted to use "):
        train(bundle, small_cohort, overlays=overlays, overrides=settings)
    with trusting():
        train(bundle, small_cohort, overlays=overlays, overrides=settings)
        checkpoint = torch.load(bundle / "models" / "checkpoint.pt", weights_only=True)
        train(bundle, small_cohort, overlays=overlays, overrides={**settings, "max_epochs": 2})  # resumed
    assert str(tmp_path).encode() not in (bundle / "models" / "model.safetensors").read_bytes()
    (tmp_path / "resnet18.pt").unlink()  # the trained bundle does not need it
    trained = load_bundle(bundle, "cpu")
    adapter = trained.network.encoder
    torch.testing.assert_close(dict(adapter.network.state_dict()), dict(pretrained), rtol=0, atol=0)
    # in the optimiser: the UNet and the projection
    moments = checkpoint["optimizer"]["state"].values()
    learnt = [*trained.network.unet.parameters(), *adapter.projection.parameters()]
    assert sorted(m["exp_avg"].shape for m in moments) == sorted(p.shape for p in learnt)
    assert not torch.equal(adapter.projection.weight, checkpoint["network"]["encoder.projection.weight"])
    assert trained.inferer.encode(torch.rand(2, 1, 16, 16) * 2 - 1, trained.network).shape == (2, 8)


def test_an_encoder_that_does_not_fit_is_refused_before_any_scan_is_read(make_workflow, tmp_path):
    encoder = json.loads(block("resnet", tmp_path).read_text())["network_def#encoder"]
    settings = {"network_def#encoder": {**encoder, "num_classes": 5}, "image_size": [32, 32], "dataset_dir": "/gone"}
    settings["check_memory"] = True  # which runs the network without data
    assert "the encoder ResNet gives (4, 5): z_channels=8 needs (B, 8)" in complaint(make_workflow, settings)
