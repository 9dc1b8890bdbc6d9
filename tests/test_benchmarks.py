"""The benchmarks that are no more than a table run through, on a tiny model."""

import ast
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torchvision.models import alexnet

from monai_diffae.data.samples import make_virtual_cohort

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
def test_baselines(tmp_path, tiny_bundle):
    cohort = make_virtual_cohort(tmp_path / "cohort", num_patients=80, size=16, val_fraction=0.2, test_fraction=0.3)
    table = pd.read_csv(cohort)
    table.assign(large=(table["head_size"] > table["head_size"].median()).astype(int)).to_csv(cohort, index=False)
    options = ["--target", "head_size", "--target", "large", "--minutes", "0.02", "--supervised-minutes", "0.02"]
    command = [sys.executable, BENCHMARKS / "baselines.py", tiny_bundle.directory, cohort, *options]
    for _ in range(2):  # the second run uses the features that the first one stored
        subprocess.run([*command, "--out", tmp_path / "out"], check=True, timeout=500)
    table = pd.read_csv(tmp_path / "out" / "baselines.csv")
    assert set(table["target"]) == {"head_size", "large"}
    kinds = {"z_sem", "PCA of pixels", "intensity statistics", "AutoencoderKL", "untrained encoder", "pixels"}
    assert set(table["features"]) == {*kinds, "supervised"}
    assert table["score"].notna().all()


@pytest.mark.slow
def test_active_learning(tmp_path):
    """Two blobs, one of a tenth of the patients: typical cases show both classes, random ones rarely."""
    generator = np.random.default_rng(0)
    rare = np.arange(200) % 10 == 0
    table = pd.DataFrame(generator.normal(size=(200, 4)) + 9 * rare[:, None], columns=[f"z_00{i}" for i in range(4)])
    labels = {"rare": np.where(rare, "yes", "no"), "size": table["z_001"] * 100}
    ids = [f"case-{i}" for i in range(200)]
    table.assign(id=ids, patient=ids, split="train", **labels).to_parquet(tmp_path / "z.parquet")
    options = ["--target", "rare", "--target", "size", "--seeds", "3", "--most", "20", "--out", tmp_path / "out"]
    command = [sys.executable, BENCHMARKS / "active_learning.py", tmp_path / "z.parquet", *options]
    subprocess.run([*command, "--strategies", "typical", "mixed"], check=True, timeout=500)
    scores = pd.read_csv(tmp_path / "out" / "active_learning.csv")
    assert len(scores) == 2 * 3 * 3 * 3  # targets, strategies, budgets, seeds
    table = pd.read_csv(tmp_path / "out" / "differences.csv").set_index(["target", "budget", "strategy"])
    assert table.loc[("rare", 5, "typical"), "score"] == 1
    assert table.loc[("rare", 5, "random"), "score"] < 1
    assert table.loc[("size", 20, "mixed"), "score"] > 0.9
    assert (tmp_path / "out" / "active_learning.png").stat().st_size > 1000


@pytest.mark.slow
def test_anomaly(tmp_path, tiny_bundle):
    cohort = make_virtual_cohort(tmp_path / "cohort", num_patients=40, size=16, val_fraction=0.3, test_fraction=0.2)
    options = ["--minutes", "0.02", "--cases", "6", "--out", tmp_path / "out"]
    command = [sys.executable, BENCHMARKS / "anomaly.py", tiny_bundle.directory, cohort, *options]
    subprocess.run(command, check=True, timeout=500)
    table = pd.read_csv(tmp_path / "out" / "anomaly.csv").set_index("reconstruction")
    assert {"Diff-AE, estimated from noised images", "AutoencoderKL", "voxel-wise mean"} <= set(table.index)
    assert table["auroc_voxel"].str.match(r"[01]\.\d{3} \(").all()
    assert len(pd.read_csv(tmp_path / "out" / "by_size.csv")) == 9


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
    assert all(f"| {name} | probe | " in table for name in ("PCA of the pixels", "planar, alexnet"))


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


@pytest.mark.slow
def test_whole_heads(tmp_path):
    first_stage = ["network_def#autoencoder#channels=[4,8]", "network_def#autoencoder#norm_num_groups=4"]
    first_stage.append("network_def#autoencoder#attention_levels=[false,false]")
    model = ["z_grid=2", "base_channels=8", "network_def#encoder#base_channels=8", "z_channels=4"]
    options = ["--heads", "40", "--size", "16", "--image-size", "16", "16", "24", "--first-stage-heads", "6"]
    options += ["--patch-epochs", "1", "--large-epochs", "1", "--validations", "1", "--reconstructions", "1"]
    options += ["--first-stage-overrides", *first_stage, "--overrides", *model]
    command = [sys.executable, BENCHMARKS / "whole_heads.py", tmp_path, *options]
    subprocess.run([*command, "--epochs", "1"], check=True, timeout=500)
    found = json.loads((tmp_path / "whole_heads.json").read_text())
    assert found["z_sem_usage"] > 0.5
    assert {"mse_z_sem", "mse_x_T", "mse_first_stage"} <= found["reconstructions"].keys()
    assert all(found[name]["peak_gib"] > 0.1 for name in ("train model", "embed", "diagnose", "reconstruct"))
    assert set(pd.read_csv(tmp_path / "probes.csv")["features"]) == {"z_sem", "PCA of voxels"}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measured with Linux's /proc")
def test_scaling(tmp_path):
    page = tmp_path / "scaling.md"
    shutil.copyfile(BENCHMARKS.parent / "docs" / "scaling.md", page)
    (tmp_path / "images").mkdir()
    out = tmp_path / "out"
    command = [sys.executable, BENCHMARKS / "scaling.py", out, "--quick", "--rounds", "1", "--docs", page]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, timeout=500, env=env)
    results = json.loads((out / "scaling.json").read_text())
    assert all(seconds > 0 for point in results["points"] for seconds in point["measured"]["seconds"])
    assert (out / "scaling.md").read_text() in page.read_text()


@pytest.mark.slow
def test_federated(tmp_path, tiny_settings, monkeypatch):
    generator = np.random.default_rng(0)
    rows = []
    for number in range(60):
        label = ["dark", "light"][number % 2]
        image = generator.integers(0, 60, (20, 20)) + (number % 2) * 120 * (np.arange(20) < 10)
        Image.fromarray(image.astype(np.uint8)).save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "patient": f"patient-{number}", "label": label})
    pd.DataFrame(rows).to_csv(tmp_path / "cohort.csv", index=False)
    out = tmp_path / "out"
    options = ["--shares", "0.75", "0.25", "--fields-of-view", "1", "0.8", "--patients", "4", "--held-out", "20"]
    options += ["--rounds", "2", "--steps", "1", "--seeds", "0", "--settings", json.dumps(tiny_settings)]
    monkeypatch.setattr(sys, "argv", ["federated.py", str(tmp_path / "cohort.csv"), "--out", str(out), *options])
    monkeypatch.chdir(tmp_path)  # MONAI reads the configuration once before it sets bundle_root
    runpy.run_path(str(BENCHMARKS / "federated.py"), run_name="__main__")
    table = pd.read_csv(out / "federated.csv").set_index("training")
    names = ["hospital 1 alone", "hospital 2 alone", "federated", "all scans in one place"]
    assert table.index.tolist() == names
    assert table["loss"].between(table["low"], table["high"]).all()
    assert table["loss"].to_numpy() == pytest.approx(
        table[["hospital_1", "hospital_2"]].mean(axis=1).to_numpy(), abs=1e-3
    )
