"""Train the tiny bundles again, and those of a new version, which are never changed later: ``make golden``."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import pandas as pd
from golden_bundles import GOLDEN, write_golden_scans
from tiny_bundles import STORED, train_tiny_bundles

from monai_diffae import __version__, embed, init, train

TINY = {
    "z_channels": 8, "z_grid": 1, "base_channels": 4, "channel_mult": [1, 2], "max_epochs": 2, "batch_size": 4,
    "network_def#unet#time_embed_channels": 16, "num_pictures": 0, "probe_interval": 0, "mlflow": False,
}  # fmt: skip
SIZES = {2: {"image_size": [16, 16]}, 3: {"image_size": [8, 8, 8], "spacing_mm": [2.5, 2.5, 2.5]}}


def make_golden(folder: Path) -> None:
    """Train, embed and store one bundle in 2D and one in 3D, in a folder that does not exist."""
    if folder.exists():
        sys.exit(f"{folder}: exists, and stored bundles never change. Set the next release's version first")
    with tempfile.TemporaryDirectory() as name:
        for spatial_dims, sizes in SIZES.items():
            kind = f"{spatial_dims}d"
            work = Path(name) / kind
            bundle = init(work / "bundle", bundle=f"diffae_{kind}").folder
            train(bundle, write_golden_scans(work / "train", spatial_dims, 12), device="cpu", overrides=TINY | sizes)
            models = folder / kind / "models"
            models.mkdir(parents=True)
            shutil.copy(bundle / "models" / "model.safetensors", models)
            found = embed(folder / kind, write_golden_scans(work / "scans", spatial_dims), work / "out", device="cpu")
            table = pd.read_parquet(found.path).sort_values("id")
            codes = [column for column in table if column.startswith("z_")]
            table[["id", *codes]].to_csv(folder / kind / "z_sem.csv", index=False)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        make_golden(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as work:
            train_tiny_bundles(STORED, Path(work))
        if not (GOLDEN / __version__).exists():
            make_golden(GOLDEN / __version__)
