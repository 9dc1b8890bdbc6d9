"""The benchmarks that are no more than a table run through, on a tiny model."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from monai_diffae.apps.training.train import train
from monai_diffae.bundle.folders import init_bundle
from monai_diffae.data.samples import make_virtual_cohort

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
def test_baselines(tmp_path, tiny_settings):
    cohort = make_virtual_cohort(tmp_path / "cohort", num_patients=80, size=16, val_fraction=0.2, test_fraction=0.3)
    table = pd.read_csv(cohort)
    table.assign(large=(table["head_size"] > table["head_size"].median()).astype(int)).to_csv(cohort, index=False)
    bundle = init_bundle(tmp_path / "bundle", "diffae_2d")
    train(bundle, cohort, overrides=tiny_settings)
    options = ["--target", "head_size", "--target", "large", "--minutes", "0.02", "--supervised-minutes", "0.02"]
    for _ in range(2):  # the second goes on with the features that are there
        subprocess.run(
            [sys.executable, BENCHMARKS / "baselines.py", bundle, cohort, *options, "--out", tmp_path / "out"],
            check=True, timeout=500,
        )  # fmt: skip
    table = pd.read_csv(tmp_path / "out" / "baselines.csv")
    assert set(table["target"]) == {"head_size", "large"}
    kinds = {"z_sem", "PCA of pixels", "intensity statistics", "AutoencoderKL", "untrained encoder", "pixels"}
    assert set(table["features"]) == {*kinds, "supervised"}
    assert table["score"].notna().all()
