"""Fixtures that several test files share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class TinyBundle:
    """A bundle trained for a few steps on a virtual cohort: ``directory`` is the bundle, ``cohort`` its table."""

    directory: Path
    cohort: Path


TINY = {
    "image_size": [16, 16],
    "network_def#base_channels": 8,
    "network_def#channel_mult": [1, 2],
    "network_def#z_channels": 8,
    "network_def#time_embed_channels": 16,
    "inferer#num_steps": 3,
    "max_epochs": 1,
    "batch_size": 4,
    "val_batch_size": 4,
    "num_pictures": 0,
    "picture_steps": 2,
    "tracking": False,
    "device": "cpu",
}
"""Config ids and values that make a bundle of the 2D model train in a second or two on a CPU."""


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    """A trained 2D bundle: 12 virtual patients of 16 x 16, one epoch, weights that know nothing."""
    from monai_diffae.apps.bundles import init_bundle
    from monai_diffae.apps.train import train
    from monai_diffae.data.samples import make_virtual_cohort

    root = tmp_path_factory.mktemp("tiny")
    cohort = make_virtual_cohort(root / "cohort", num_patients=12, size=16, val_fraction=0.2, test_fraction=0.3)
    directory = init_bundle(root / "bundle", "diffae_2d")
    train(directory, cohort, overrides=TINY)
    return TinyBundle(directory, cohort)
