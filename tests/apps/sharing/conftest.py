"""A trained bundle as it is before it is sent."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def described(tiny_bundle: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained bundle whose documents describe it, with files that must stay at home."""
    bundle = shutil.copytree(tiny_bundle.directory, tmp_path_factory.mktemp("described") / "bundle")
    (bundle / "docs" / "README.md").write_text("# Virtual heads\n\nTrained on 12 virtual patients.\n")
    (bundle / "docs" / "data_license.txt").write_text("Virtual patients, free of any licence.\n")
    for name in (
        "mlflow.db", "embeddings.parquet", "pictures/mrdoe.png", "docs/mrdoe.png", "docs/mrdoe.json",
        "configs/mrdoe.json", "configs/logging.conf", "failures.csv", "models/mrdoe.pt", "models/training.json",
        "scripts/own.py", "configs/own.yaml", "configs/overlays/mrdoe.json",
    ):  # fmt: skip
        (bundle / name).parent.mkdir(exist_ok=True)
        (bundle / name).write_text('{"patient": "mrdoe"}')
    train = json.loads((bundle / "configs" / "train.json").read_text())
    train["dataset_dir"] = "/home/mrdoe/scans"
    train["mine"] = {"data": [{"image": "mrdoe/1.nii.gz"}]}
    (bundle / "configs" / "train.json").write_text(json.dumps(train))
    vary = json.loads((bundle / "configs" / "vary.json").read_text())
    (bundle / "configs" / "vary.json").write_text(json.dumps({**vary, "case": "mrdoe-1"}))
    return bundle
