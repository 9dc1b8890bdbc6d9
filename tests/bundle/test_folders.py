"""`init` copies the overlays that go with the bundle; another one that is laid over it is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from monai_diffae.apps.training.train import train
from monai_diffae.bundle.folders import init_bundle
from monai_diffae.errors import ConfigError

ROOT = Path(__file__).parents[2]
ALL = {path.stem for path in (ROOT / "configs").glob("*.json")}


@pytest.mark.parametrize(
    ("bundle", "expected"),
    [
        ("diffae_2d", ALL - {"latent_space", "embed_volumes", "encoder_view_3d"}),
        ("diffae_3d", {"fp32", "second_modality", "latent_space", "embed_volumes", "encoder_view_3d"}),
        ("autoencoder_kl_3d", {"fp32"}),
    ],
)
def test_init_copies_the_overlays_that_fit(bundle: str, expected: set[str], tmp_path: Path) -> None:
    directory = init_bundle(tmp_path / "new", bundle)
    assert {path.stem for path in (directory / "configs" / "overlays").iterdir()} == expected


@pytest.mark.parametrize("overlay", ["ct", "gpu", "paper_64"])
def test_an_overlay_of_2d_over_a_3d_bundle_is_one_line(overlay: str, tmp_path: Path) -> None:
    directory = init_bundle(tmp_path / "new", "diffae_3d")
    with pytest.raises(ConfigError) as caught:
        train(
            directory, tmp_path / "scans", overlays=[ROOT / "configs" / f"{overlay}.json"], overrides={"device": "cpu"}
        )
    assert str(caught.value) == (
        "spacing_mm is [1.5, 1.5, 1.5], but spatial_dims is 2; give 2 numbers, or omit the overlay or "
        "start_from for others; configs/overlays has those that fit"
    )


def test_the_overlay_of_latents_over_a_2d_bundle_is_one_line(tmp_path: Path) -> None:
    directory = init_bundle(tmp_path / "new", "diffae_2d")
    overrides = {"device": "cpu", "first_stage_bundle": "gone"}
    with pytest.raises(ConfigError, match="slice_axis is a key of 2D bundles, but spatial_dims is 3; omit the overlay"):
        train(directory, tmp_path / "scans", overlays=[ROOT / "configs" / "latent_space.json"], overrides=overrides)


def test_sizes_of_another_dimension_are_one_line(tmp_path: Path) -> None:
    directory = init_bundle(tmp_path / "new", "diffae_3d")
    with pytest.raises(ConfigError, match=r"image_size is \[64, 64\], but spatial_dims is 3; give 3"):
        train(directory, tmp_path / "scans", overrides={"device": "cpu", "image_size": [64, 64]})
    with pytest.raises(ConfigError, match=r"spacing_mm is \[1, 1\], but spatial_dims is 3; give 3"):
        train(directory, tmp_path / "scans", overrides={"device": "cpu", "spacing_mm": [1, 1]})
