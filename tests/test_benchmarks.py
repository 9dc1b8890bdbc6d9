"""The benchmarks that are no more than a table run through, on a tiny model."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
