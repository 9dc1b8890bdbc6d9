"""Real scans and tiny bundles for the tests of the MONAI Label app."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tiny_bundles import copy_tiny, rewrite

from monai_diffae import anomaly, load_bundle
from monai_diffae.bundle.description import write_description
from monai_diffae.bundle.model_file import read_model
from monai_diffae.latents import Direction, LatentStatistics


@dataclass(frozen=True)
class Studies:
    """A folder of real scans, and the original of each scan by id."""

    folder: Path
    source: dict[str, Path]


def some(volumes, count):
    """The first NIfTI files of the fixture ``volumes``, and the DICOM series."""
    return {name: volumes[name] for name in [*list(volumes)[:count], "series-1"]}


def fill(folder, scans):
    """Copy scans, files or folders of DICOM, to a folder under names that are their ids."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in scans.items():
        if path.is_dir():
            shutil.copytree(path, folder / name, ignore=shutil.ignore_patterns("*.txt"))
        else:
            shutil.copy(path, folder / f"{name}{''.join(path.suffixes)}")
    return Studies(folder, dict(scans))


def tiny_bundle_for(root, kind, scans):
    """A stored tiny bundle, 2d or 3d, calibrated with real scans. Volumes are read with voxels of 3 mm."""
    root.mkdir(parents=True, exist_ok=True)
    cohort = root / "cohort.csv"
    splits = ("test", "val", "train", "train")
    rows = [f"{id},{path},{splits[row % 4]}" for row, (id, path) in enumerate(scans.items())]
    cohort.write_text("\n".join(["id,image,split", *rows]) + "\n")
    bundle = stored_bundle(root / "bundle", kind)
    anomaly(bundle, cohort, root / "unusual", calibrate_with=cohort, limit=1, device="cpu")
    return bundle


def stored_bundle(folder, kind):
    """A stored tiny bundle, 2d or 3d, with voxels of 3 mm, without anomalies, and quickly satisfied with an x_T."""
    bundle = copy_tiny(folder, {"2d": "2d_all", "3d": "3d"}[kind], ignore=("latent*", "fast*", "anomaly*"))
    changes = {"inferer": {**load_bundle(bundle, "cpu").config["inferer"], "invert_tolerance": 0.01}}
    rewrite(bundle, **changes, **({"spacing_mm": [3.0, 3.0, 3.0]} if kind == "3d" else {}))
    write_description(read_model(bundle / "models" / "model.safetensors").description, bundle)
    train = bundle / "configs" / "train.json"
    quick = {"num_pictures": 0, "probe_interval": 0, "check_memory": False}
    train.write_text(json.dumps({**json.loads(train.read_text()), **quick}))
    return bundle


def direction_for(bundle):
    """A direction for a bundle's z_sem, without meaning."""
    trained = load_bundle(bundle, "cpu")
    weight = np.random.default_rng(0).normal(size=trained.z_channels)
    weight /= np.linalg.norm(weight)
    statistics = LatentStatistics(np.zeros(trained.z_channels), np.ones(trained.z_channels))
    return Direction(
        "age", "continuous", None, weight, weight, 0.0, 10.0, 50.0, 2.0, statistics, trained.sha256, 1.0, 0.9, 100, 0
    )
