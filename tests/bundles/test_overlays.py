"""Each shipped overlay trains for an epoch, on the kind of data that it is for."""

import json
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from monai_diffae.apps.training.train import train
from monai_diffae.bundle.folders import init_bundle
from monai_diffae.bundle.loading import load_bundle
from monai_diffae.data.medmnist import medmnist_to_cohort
from monai_diffae.errors import ConfigError

ROOT = Path(__file__).parents[2]
# latent_space is for volumes and a first stage: test_latent_space.py
OVERLAYS = sorted(path for path in (ROOT / "configs").glob("*.json") if path.stem != "latent_space")
SMALL = {
    "image_size": [16, 16], "base_channels": 8, "channel_mult": [1, 2],
    "z_channels": 8, "network_def#unet#time_embed_channels": 16,
}  # fmt: skip
SMALL_3D = {**SMALL, "image_size": [8, 12, 8], "spacing_mm": [3, 3, 3]}
SMALL_PAPER = {
    "image_size": [64, 64],
    "base_channels": 16,
}  # all their levels and attention, fewer channels
SHORT = {
    "max_epochs": 1, "batch_size": 4, "val_batch_size": 4, "num_pictures": 2, "picture_steps": 2, "mlflow": False,
    "check_memory": False, "device": "cpu", "workers": 0,
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


def two_modalities(folder, table):
    frame = pd.read_csv(table)
    frame["image"] = [str(table.parent / image) for image in frame["image"]]
    frame["encoder_image"] = frame["image"].to_numpy()[::-1]
    frame.to_csv(folder / "pairs.csv", index=False)
    return folder / "pairs.csv"


def each_overlay():
    """The three of the paper differ in size only, so that one of them is enough for the quick tests."""
    slow = {name: [pytest.mark.slow] for name in ("paper_64", "paper_128")}
    return [pytest.param(path, id=path.stem, marks=slow.get(path.stem, [])) for path in OVERLAYS]


@pytest.mark.parametrize("overlay", each_overlay())
def test_overlay_trains_and_loads(overlay, small_cohort, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    cohort = {
        "ct": lambda: volumes(data, -1000, 1500),
        "volumes_mr": lambda: volumes(data, 0, 900),
        "medmnist": lambda: medmnist(data),
        "second_modality": lambda: two_modalities(data, small_cohort),
        "embed_volumes": lambda: volumes(data, 0, 900),
        "encoder_view_3d": lambda: volumes(data, 0, 900),
    }.get(overlay.stem, lambda: small_cohort)()
    bundle = "diffae_3d" if json.loads(overlay.read_text()).get("spatial_dims") == 3 else "diffae_2d"
    directory = init_bundle(tmp_path / "bundle", bundle)
    size = SMALL_PAPER if overlay.stem.startswith("paper") else SMALL_3D if bundle == "diffae_3d" else SMALL
    train(directory, cohort, overlays=[directory / "configs" / "overlays" / overlay.name], overrides={**size, **SHORT})
    losses = pd.read_csv(directory / "curves.csv")["validation_loss"].tolist()
    assert np.isfinite(losses[-1])  # the last row is the last validation's
    assert (directory / "pictures" / "latest.png").is_file()
    trained = load_bundle(directory, "cpu")
    z_sem = trained.inferer.encode(torch.zeros(1, 1, *size["image_size"]), trained.network)
    assert torch.isfinite(z_sem).all()


def test_what_a_training_in_a_checkout_writes_is_ignored_by_git(tiny_bundle):
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    source = ROOT / "bundles" / "diffae_2d"
    written = {p.relative_to(tiny_bundle.directory) for p in tiny_bundle.directory.rglob("*") if p.is_file()}
    known = subprocess.run(
        ["git", "ls-files", "bundles/diffae_2d"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    shipped = {Path(line).relative_to("bundles/diffae_2d") for line in known.stdout.splitlines()}
    new = [
        str((source / p).relative_to(ROOT)) for p in written - shipped if not str(p).startswith("configs/overlays")
    ] + ["bundles/diffae_2d/mlflow.db", "bundles/diffae_2d/mlruns/1/a", "bundles/diffae_2d/pictures/latest.png"]
    check = subprocess.run(
        ["git", "check-ignore", "--no-index", "--stdin"],
        cwd=ROOT, input="\n".join(new), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert set(new) - set(check.stdout.splitlines()) == set()


def test_monai_finds_every_training_property(make_workflow):
    workflow = make_workflow()
    assert workflow.check_properties() == []


@pytest.mark.parametrize("overlay", ["encoder_view", "encoder_view_3d"])
def test_the_z_sem_of_two_views_are_trained_to_agree(overlay, small_cohort, tmp_path):
    in_3d = overlay == "encoder_view_3d"
    (tmp_path / "data").mkdir()
    cohort = volumes(tmp_path / "data", 0, 900) if in_3d else small_cohort
    directory = init_bundle(tmp_path / "bundle", "diffae_3d" if in_3d else "diffae_2d")
    overrides = {**(SMALL_3D if in_3d else SMALL), **SHORT, "num_pictures": 0}
    with pytest.raises(ConfigError, match=f"agreement_weight is 0.02.*add the overlay {overlay},"):
        train(directory, cohort, overrides={**overrides, "agreement_weight": 0.02})
    overlays = [directory / "configs" / "overlays" / f"{overlay}.json"]
    losses = []
    for weight in (0.0, 0.02):
        out = tmp_path / str(weight)
        train(directory, cohort, out=out, overlays=overlays, overrides={**overrides, "agreement_weight": weight})
        losses.append(pd.read_csv(out / "curves.csv")["loss"][0])
    assert losses[1] > losses[0]  # both terms are added
    assert json.loads((out / "models" / "training.json").read_text())["agreement_weight"] == 0.02
