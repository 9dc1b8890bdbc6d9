"""The bundle runs that evaluate: they are current, and make the same files as the Python functions."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from monai.bundle import ConfigWorkflow

import monai_diffae
from monai_diffae.apps.command_configs import as_json, command_config
from monai_diffae.apps.commands import COMMANDS
from monai_diffae.apps.embedding.embed import embed
from monai_diffae.errors import find_diffae_error, one_line

BUNDLES = Path(__file__).parents[2] / "bundles"
NAMES = ("probe", "neighbors", "diagnose", "evaluate", "anomaly")
KEYS = {"bundle": "bundle_root", "cohort": "dataset_dir", "out": "output_dir"}
RECORDS = ("probe.json", "neighbors.json", "diagnosis.json", "evaluate.json", "anomaly.json")


@dataclass(frozen=True)
class Embedded:
    """A trained bundle, its cohort and the embeddings; ids look like numbers, as MONAI's command line may make them."""

    root: Path
    cohort: Path
    embeddings: Path
    ids: list[str]

    def arguments(self, name: str) -> dict[str, Any]:
        """Arguments of a quick call, without ``out``."""
        bundle = {"bundle": str(self.root), "cohort": str(self.cohort)}
        table = {"embeddings": str(self.embeddings)}
        return {
            "probe": {**table, **bundle, "targets": ["tilt"], "probes": ["linear"], "pixel_baselines": ["intensity"]},
            "neighbors": {**table, **bundle, "k": 2, "cases": self.ids[:2], "device": "cpu"},
            "diagnose": {**bundle, "split": None, "num_levels": 1, "device": "cpu"},
            "evaluate": {**bundle, "steps": [2], "device": "cpu"},
            "anomaly": {**bundle, "cases": self.ids[:2], "device": "cpu"},
        }[name]


@pytest.fixture(scope="module")
def embedded(tiny_bundle: Any, tmp_path_factory: pytest.TempPathFactory) -> Embedded:
    folder = tmp_path_factory.mktemp("evaluation")
    table = pd.read_csv(tiny_bundle.cohort)
    table["image"] = [str(tiny_bundle.cohort.parent / image) for image in table["image"]]
    table["id"] = range(100, 100 + len(table))
    table.to_csv(folder / "cohort.csv", index=False)
    root = shutil.copytree(tiny_bundle.directory, folder / "bundle", ignore=shutil.ignore_patterns("cache"))
    embeddings = embed(root, folder / "cohort.csv", folder / "embedded", device="cpu").path
    return Embedded(root, folder / "cohort.csv", embeddings, [str(i) for i in table["id"]])


def run(embedded: Embedded, name: str, values: dict[str, Any]) -> None:
    config = embedded.root / "configs" / f"{name}.json"
    workflow = ConfigWorkflow(str(config), logging_file=False, workflow_type="infer")
    workflow.parser.update({"bundle_root": str(embedded.root), **values})
    workflow.initialize()
    workflow.run()
    workflow.finalize()


def keys(arguments: dict[str, Any]) -> dict[str, Any]:
    return {KEYS.get(name, name): value for name, value in arguments.items()}


def contents(folder: Path) -> dict[str, bytes]:
    files = [file for file in folder.rglob("*") if file.is_file() and ".cache" not in file.parts]
    return {file.name: file.read_bytes() for file in files}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "evaluate"])  # it has the bundle's model, too
def test_the_shipped_configs_are_those_of_the_signatures(name: str) -> None:
    command = next(command for command in COMMANDS if command.name == name)
    for bundle in ("diffae_2d", "diffae_3d"):
        assert (BUNDLES / bundle / "configs" / f"{name}.json").read_text() == as_json(command_config(command))


@pytest.mark.parametrize("name", NAMES)
def test_a_run_makes_the_files_of_the_python_function(embedded: Embedded, tmp_path: Path, name: str) -> None:
    arguments = embedded.arguments(name)
    run(embedded, name, {**keys(arguments), "output_dir": str(tmp_path / "config")})
    getattr(monai_diffae, name)(**arguments, out=tmp_path / "python")
    by_config, by_python = contents(tmp_path / "config"), contents(tmp_path / "python")
    assert by_config == by_python
    assert name == "evaluate" or any(file.endswith(".png") for file in by_config)
    assert [file for file in by_config if file in RECORDS]


@pytest.mark.parametrize("name", ["probe", "neighbors"])
def test_a_run_without_a_cohort_reads_no_image(embedded: Embedded, tmp_path: Path, name: str) -> None:
    """``bundle_root`` is always set."""
    arguments = {"embeddings": str(embedded.embeddings), "output_dir": str(tmp_path / "out")}
    run(embedded, name, arguments)
    assert not list(tmp_path.rglob("neighbors.png"))
    record = next(file for file in (tmp_path / "out").iterdir() if file.name in RECORDS)
    made_from = json.loads(record.read_text())["made_from"]
    assert made_from[{"probe": "pixel_baselines", "neighbors": "images"}[name]] is None


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("probe", "prob", 1, "unknown config key 'prob'"),
        ("probe", "evaluation", "loo", "evaluation: 'loo' is not one of split, cv"),
        ("probe", "targets", ["ages"], "targets: there is no label column 'ages'"),
        ("neighbors", "gap", True, "unknown config key 'gap'"),
        ("neighbors", "k", 0, "k: 0 is below 1"),
        ("diagnose", "num_levels", 0, "num_levels: 0 is below 1"),
        ("evaluate", "steps", [0], "steps: 0 is below 1"),
        ("anomaly", "quantile", 2, "quantile: 2 is above 1"),
    ],
)
def test_wrong_keys_and_values_are_one_line(
    embedded: Embedded, tmp_path: Path, name: str, key: str, value: Any, message: str
) -> None:
    values = {**keys(embedded.arguments(name)), "output_dir": str(tmp_path / "out"), key: value}
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI wraps ours
        run(embedded, name, values)
    assert find_diffae_error(caught.value) is not None, repr(caught.value)
    assert message in one_line(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_monai_runs_one_from_the_command_line(embedded: Embedded, tmp_path: Path) -> None:
    arguments = [
        "--config_file", embedded.root / "configs" / "neighbors.json", "--bundle_root", embedded.root,
        "--dataset_dir", embedded.cohort, "--embeddings", embedded.embeddings, "--output_dir", tmp_path / "near",
        "--cases", f"[{embedded.ids[3]}]", "--k", "2", "--device", "cpu",
    ]  # fmt: skip
    command = [sys.executable, "-m", "monai.bundle", "run", "neighbors", *map(str, arguments)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert pd.read_csv(tmp_path / "near" / "neighbors.csv", dtype=str)["id"].tolist() == [embedded.ids[3]] * 2
    assert (tmp_path / "near" / "neighbors.png").is_file()


def test_the_evaluator_of_evaluate_measures_what_the_command_measures(embedded: Embedded, tmp_path: Path) -> None:
    files = [str(embedded.root / "configs" / "evaluate.json"), str(embedded.root / "models" / "config.json")]
    workflow = ConfigWorkflow(files, logging_file=False, workflow_type="eval")
    paths = {"bundle_root": str(embedded.root), "dataset_dir": str(embedded.cohort), "output_dir": str(tmp_path)}
    workflow.parser.update({**paths, "device": "cpu", "inferer#invert_steps": 3, "inferer#invert_tolerance": None})
    workflow.initialize()
    evaluator = workflow.parser.get_parsed_content("evaluator")
    evaluator.run()
    arguments = {"bundle": embedded.root, "cohort": embedded.cohort, "steps": [3], "num_codes": 0, "device": "cpu"}
    rows = monai_diffae.evaluate(tmp_path / "out", **arguments).content["rows"]
    values = {row["metric"]: row["value"] for row in rows if row["table"] == "reconstruction"}
    assert evaluator.state.metrics["ssim"] == pytest.approx(values["ssim"], abs=1e-4)
    assert evaluator.state.metrics["psnr"] == pytest.approx(values["psnr"], rel=1e-4)
