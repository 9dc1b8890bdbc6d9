"""The stored bundles of every released version, the scans that they embed, and how far z_sem is from the stored one."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from PIL import Image

from monai_diffae import embed
from monai_diffae.bundle.model_file import read_description
from monai_diffae.data.embeddings import z_matrix

GOLDEN = Path(__file__).parent
VERSIONS = sorted(folder for folder in GOLDEN.iterdir() if folder.name[0].isdigit())


def write_golden_scans(folder: Path, spatial_dims: int, count: int = 6) -> Path:
    """Write images (2) or volumes (3) of simple formulas, which no version of a library changes, into a new folder."""
    folder.mkdir(parents=True)
    write = {2: _write_image, 3: _write_volume}[spatial_dims]
    for i in range(count):
        write(folder, i)
    return folder


def embed_golden_scans(bundle: Path, scans: Path, out: Path) -> Path:
    """Embed these scans, which have no masks, whole; the table."""
    has_box = read_description(bundle / "models" / "model.safetensors").get("region") == "box"
    return embed(bundle, scans, out, device="cpu", overrides={"region": "whole"} if has_box else {}).path


def difference_from_stored(bundle: Path, table: Path) -> float:
    """The largest difference between a table of embeddings and the stored z_sem, in standard deviations of z_sem."""
    found = pd.read_parquet(table).sort_values("id")
    stored = pd.read_csv(bundle / "z_sem.csv")
    assert found["id"].tolist() == stored["id"].tolist()
    z = z_matrix(stored)
    return float(np.abs(z_matrix(found) - z).max() / z.std())


def _write_image(folder: Path, i: int) -> None:
    y, x = np.mgrid[:20, :18]
    image = (np.hypot(x - 9 - i, y - 8) < 4 + i / 2) * 150 + (3 * x + 2 * y + 5 * i) % 40
    Image.fromarray(image.astype(np.uint8)).save(folder / f"case_{i}.png")


def _write_volume(folder: Path, i: int) -> None:
    z, y, x = np.mgrid[:10, :9, :11]
    is_inside = np.sqrt((x - 5) ** 2 + (y - 4) ** 2 + (z - 5) ** 2) < 2 + i / 2
    volume = (is_inside * 150 + (3 * x + 2 * y + z + 5 * i) % 40).astype(np.int16)
    nib.save(nib.Nifti1Image(volume, np.diag([-2, 2, 2.5, 1])), folder / f"case_{i}.nii.gz")
