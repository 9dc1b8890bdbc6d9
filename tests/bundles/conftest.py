"""A trained first stage for the tests of bundles."""

from __future__ import annotations

from pathlib import Path

import pytest

TINY_KL = {
    "image_size": [16, 16, 24], "spacing_mm": [14.0, 14.0, 14.0], "patch_size": [16, 16, 16], "max_epochs": 1,
    "network_def#autoencoder#channels": [4, 8], "network_def#autoencoder#attention_levels": [False, False],
    "network_def#autoencoder#norm_num_groups": 4, "val_interval": 1, "num_pictures": 0, "mlflow": False,
    "device": "cpu", "test_fraction": 0.2, "val_fraction": 0.2,
}  # fmt: skip


@pytest.fixture(scope="session")
def first_stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained first stage, beside the folder ``cohort`` with its scans."""
    from monai_diffae.apps.training.train import train
    from monai_diffae.bundle.folders import init_bundle
    from monai_diffae.data.samples import make_virtual_cohort

    root = tmp_path_factory.mktemp("kl")
    make_virtual_cohort(root / "cohort", num_patients=7, size=16, spatial_dims=3, val_fraction=0.2)
    bundle = init_bundle(root / "bundle", "autoencoder_kl_3d")
    train(bundle, root / "cohort", overrides=TINY_KL)
    return bundle
