"""The benchmarks that are no more than a table run through, on a tiny model."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import alexnet

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_what_benchmarks_import_from_the_package_and_from_each_other_exists(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    names = {"monai_diffae", *(file.stem for file in BENCHMARKS.glob("*.py"))}
    for file in BENCHMARKS.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            module = getattr(node, "module", None) or ""
            if isinstance(node, ast.ImportFrom) and module.partition(".")[0] in names:
                exec(ast.unparse(node), {})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "splits", "more"),
    [
        ((28, 28, 3), {"train": 24, "val": 12, "test": 12}, ["--images", "48"]),
        ((24, 24, 24), {"train": 24, "val": 12}, ["--minutes", "0.2", "--side", "12", "--name", "adrenalmnist3d"]),
    ],
)
def test_medmnist(tmp_path, shape, splits, more):
    generator = np.random.default_rng(0)
    arrays = {}
    for split, number in splits.items():
        labels = np.arange(number) % 2
        images = generator.integers(0, 60, (number, *shape))
        images[labels == 1, : shape[0] // 2] += 120
        arrays |= {f"{split}_images": images.astype(np.uint8), f"{split}_labels": labels[:, None]}
    np.savez(tmp_path / "pneumoniamnist.npz", **arrays)
    small = ["base_channels=8", "network_def#encoder#base_channels=8", "z_channels=8", "calibration_cases=0"]
    torch.save(alexnet(weights=None).features.state_dict(prefix="features."), tmp_path / "alexnet.pth")
    options = ["--planar-weights", tmp_path / "alexnet.pth", "--seeds", "0", *more]
    options += ["--overrides", *small, "num_pictures=0", "batch_size=8"]
    command = [sys.executable, BENCHMARKS / "medmnist.py", tmp_path / "pneumoniamnist.npz", tmp_path / "out", *options]
    for _ in range(2):  # the second reads what is there
        subprocess.run(command, check=True, timeout=500)
    table = (tmp_path / "out" / "results.md").read_text()
    assert float(table.partition("| z_sem | probe | ")[2].split()[0]) > 90
    assert ("DINO" in table) == ("probe, C on val" in table) == (shape[-1] == 3)
    assert ("| Raptor | published | 92.6 |" in table) == ("Evaluated on val" in table) == (shape[-1] == 24)
    assert all(f"| {name} | probe | " in table for name in ("PCA of the pixels", "oriented gradients", "planar, alexnet"))


@pytest.mark.slow
def test_all_that_runs_on_a_gpu_runs_on_a_cpu(tmp_path):
    out = tmp_path / "gpu.json"
    command = [BENCHMARKS / "gpu.sh", "--device", "cpu", "--quick", "--out", out]
    subprocess.run(command, check=True, timeout=500, env={**os.environ, "PYTHON": sys.executable})
    results = json.loads(out.read_text())
    assert results["failed"] == {}
    assert results["checks"]["losses_agree"]
    assert results["checks"]["largest_relative_difference"] == 0
    assert results["checks"]["two_trainings_same_bits"]
    assert results["checks"]["resume_is_exact"]
    assert all(rate > 0 for rate in results["machine"]["best_convolution_tflops"].values())
    assert results["training"].keys() == {"diffae_2d", "paper_64", "diffae_3d"}
    assert all(row["both_ways_same_bits"] for rows in results["decoding"].values() for row in rows)
    assert results["embedding"]["embed"] > 0
