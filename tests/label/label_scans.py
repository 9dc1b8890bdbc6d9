"""Real scans and tiny bundles for the tests of the MONAI Label app."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from monai_diffae import calibrate, load_bundle, train
from monai_diffae.bundle.folders import init_bundle
from monai_diffae.latents import Direction
from monai_diffae.latents.statistics import LatentStatistics

SHARED = Path(__file__).parents[3] / "shared" / "data"

TINY = {
    "base_channels": 8, "channel_mult": [1, 2], "z_channels": 8, "network_def#unet#time_embed_channels": 16,
    "inferer#steps": 3, "inferer#invert_steps": 4, "max_epochs": 1, "batch_size": 4, "val_batch_size": 4,
    "num_pictures": 0, "mlflow": False, "device": "cpu", "val_fraction": 0.25, "test_fraction": 0.25,
}  # fmt: skip
SIZES = {
    "diffae_2d": {"image_size": [16, 16]},
    "diffae_3d": {"image_size": [16, 16, 16], "spacing_mm": [3.0, 3.0, 3.0]},
}


def shared(folder: str, pattern: str) -> list[Path]:
    """Real scans, sorted; the test is skipped where they are not."""
    files = sorted((SHARED / folder).rglob(pattern))
    if not files:
        pytest.skip(f"the real scans {folder} are not on this machine")
    return files


@dataclass(frozen=True)
class Studies:
    """A folder of real scans.

    Attributes:
        folder: the folder.
        source: the original of each scan by id.
    """

    folder: Path
    source: dict[str, Path]


def fill(folder: Path, scans: dict[str, Path]) -> Studies:
    """Copy scans, files or folders of DICOM, to a folder under names that are their ids."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in scans.items():
        if path.is_dir():
            shutil.copytree(path, folder / name, ignore=shutil.ignore_patterns("*.txt"))
        else:
            shutil.copy(path, folder / f"{name}{''.join(path.suffixes)}")
    return Studies(folder, dict(scans))


def train_tiny(root: Path, name: str, scans: dict[str, Path]) -> Path:
    """A bundle trained for one epoch on real scans, with weights that are shaken so that z_sem tells scans apart."""
    cohort = root / "cohort.csv"
    rows = [f"{id},{path}" for id, path in scans.items()]
    cohort.parent.mkdir(parents=True, exist_ok=True)
    cohort.write_text("\n".join(["id,image", *rows]) + "\n")
    bundle = init_bundle(root / "bundle", name)
    train(bundle, cohort, overrides={**TINY, **SIZES[name]})
    weights = bundle / "models" / "model.pt"
    generator = torch.Generator().manual_seed(0)
    state = torch.load(weights, weights_only=True)
    for key, value in state.items():
        if value.is_floating_point() and value.ndim > 1:
            state[key] = value + 0.05 * torch.randn(value.shape, generator=generator)
    torch.save(state, weights)
    calibrate(bundle, cohort, device="cpu")
    return bundle


def direction_for(bundle: Path) -> Direction:
    """A direction for a bundle's z_sem, without meaning."""
    trained = load_bundle(bundle, "cpu")
    weight = np.random.default_rng(0).normal(size=trained.z_channels)
    weight /= np.linalg.norm(weight)
    statistics = LatentStatistics(np.zeros(trained.z_channels), np.ones(trained.z_channels))
    return Direction(
        "age", "continuous", None, weight, weight, 0.0, 10.0, 50.0, 2.0, statistics, trained.sha256, 1.0, 0.9, 100, 0
    )
