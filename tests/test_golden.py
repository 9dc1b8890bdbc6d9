"""Stored bundles of every released version still give the same z_sem.

A release adds a folder: bundles that it trained, without what ``embed`` does not need, and the z_sem that it found.
"""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from monai_diffae import embed
from monai_diffae.data.embeddings import z_matrix

GOLDEN = Path(__file__).parent / "golden"
BUNDLES = sorted(path.parent.parent for path in GOLDEN.glob("*/*/models/model.pt"))


def write_image(folder: Path, i: int) -> None:
    """An image of simple formulas, which no version of a library changes."""
    y, x = np.mgrid[:20, :18]
    image = (np.hypot(x - 9 - i, y - 8) < 4 + i / 2) * 150 + (3 * x + 2 * y + 5 * i) % 40
    Image.fromarray(image.astype(np.uint8)).save(folder / f"case_{i}.png")


def write_volume(folder: Path, i: int) -> None:
    z, y, x = np.mgrid[:10, :9, :11]
    is_inside = np.sqrt((x - 5) ** 2 + (y - 4) ** 2 + (z - 5) ** 2) < 2 + i / 2
    volume = (is_inside * 150 + (3 * x + 2 * y + z + 5 * i) % 40).astype(np.int16)
    nib.save(nib.Nifti1Image(volume, np.diag([-2, 2, 2.5, 1])), folder / f"case_{i}.nii.gz")


def test_there_are_golden_bundles():
    assert {path.name for path in BUNDLES} == {"2d", "3d"}


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_a_bundle_of_a_release_embeds_as_it_did(bundle, tmp_path):
    """To 1e-5 of the standard deviation of z_sem, since other processors round differently."""
    write = write_image if bundle.name == "2d" else write_volume
    cohort = tmp_path / "scans"
    cohort.mkdir()
    for i in range(6):
        write(cohort, i)
    made = embed(bundle, cohort, tmp_path / "out", device="cpu")
    found = pd.read_parquet(made.path).sort_values("id")
    expected = pd.read_csv(bundle / "z_sem.csv")
    assert found["id"].tolist() == expected["id"].tolist()
    z = z_matrix(expected)
    assert np.abs(z_matrix(found) - z).max() <= 1e-5 * z.std()
