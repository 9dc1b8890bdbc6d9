"""Trainings of some seconds, run as a user runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from monai_diffae.bundle.folders import init_bundle

CHEAP: dict[str, list[Any]] = {"without_picture_of_curves": []}  # it takes longer than an epoch
_SETTINGS = {
    "base_channels": 8, "channel_mult": [1, 2], "z_channels": 8, "network_def#unet#time_embed_channels": 16,
    "inferer#steps": 2, "inferer#invert_steps": 2, "picture_steps": 2, "probe_interval": 0, "calibration_cases": 0,
    "check_memory": False, "mlflow": False, "device": "cpu",
}  # fmt: skip
_SIZES = {
    2: {"image_size": [16, 16], "batch_size": 2},
    3: {"image_size": [16, 16, 16], "spacing_mm": [14.0, 14.0, 14.0], "batch_size": 1},
}


def training(bundle: Path, cohort: Path, settings: dict[str, Any], *, axes: int = 2, workers: int = 0) -> list[object]:
    """The arguments of the program; the bundle is made if it does not exist."""
    if not bundle.exists():
        init_bundle(bundle, f"diffae_{axes}d")
    values = {**_SETTINGS, **_SIZES[axes], **settings}
    overrides = [f"{key}={str(value).replace(' ', '')}" for key, value in values.items()]
    return ["train", bundle, cohort, "--workers", workers, "--overrides", *overrides]


def saved_step(bundle: Path) -> int:
    """The step of the last checkpoint."""
    return int(torch.load(bundle / "models" / "checkpoint.pt", weights_only=True)["trainer"]["iteration"])
