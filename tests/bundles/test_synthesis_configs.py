"""The bundle runs that make images: their keys are the Python functions' arguments, and they make the same files."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from monai.bundle import ConfigWorkflow

from monai_diffae.apps.command_configs import as_json, command_config
from monai_diffae.apps.commands import COMMANDS
from monai_diffae.apps.embedding.embed import embed
from monai_diffae.apps.synthesis.edit import edit
from monai_diffae.apps.synthesis.fit_direction import fit_direction
from monai_diffae.apps.synthesis.generate import generate
from monai_diffae.apps.synthesis.grade import grade
from monai_diffae.apps.synthesis.interpolate import interpolate
from monai_diffae.apps.synthesis.traverse import traverse
from monai_diffae.apps.synthesis.vary import vary
from monai_diffae.apps.training.train_latent import train_latent
from monai_diffae.bundle.config import check_config
from monai_diffae.errors import find_diffae_error, one_line

BUNDLES = Path(__file__).parents[2] / "bundles"
CONFIGS = BUNDLES / "diffae_2d" / "configs"
FUNCTIONS = (generate, interpolate, vary, traverse, fit_direction, grade, edit, embed)
RUNS: dict[str, Callable[..., Any]] = {function.__name__: function for function in FUNCTIONS}
MADE_OF_A_COHORT = {"bundle": "bundle_root", "cohort": "dataset_dir", "out": "output_dir"}
MADE_OF_A_TABLE = {"bundle": "bundle_root"}  # fit_direction and grade write a file, not a folder
QUICK = {"steps": 2, "invert_steps": 2, "device": "cpu"}


def renamed(name: str) -> dict[str, str]:
    return MADE_OF_A_TABLE if name in ("fit_direction", "grade") else MADE_OF_A_COHORT


def read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((CONFIGS / f"{name}.json").read_text())
    return content


@dataclass(frozen=True)
class Made:
    """A trained bundle with a latent model, and what was made of its cohort."""

    root: Path
    cohort: Path
    embeddings: Path
    direction: Path
    ids: list[str]

    def arguments(self, name: str) -> dict[str, Any]:
        """What a run needs and what makes it quick, under the function's names, without ``out``."""
        cohort = {"bundle": str(self.root), "cohort": str(self.cohort), **QUICK}
        table = {"embeddings": str(self.embeddings)}
        return {
            "generate": {"bundle": str(self.root), "steps": 2, "device": "cpu", "num_images": 2},
            "interpolate": {**cohort, "start": self.ids[0], "end": self.ids[1], "num_images": 3},
            "vary": {**cohort, "case": self.ids[0], "num_images": 2},
            "traverse": {**cohort, **table, "case": self.ids[0], "strengths": [-1, 1], "num_components": 1},
            "fit_direction": {**table, "target": "tilt"},
            "grade": {**table, "direction": str(self.direction)},
            "edit": {**cohort, "direction": str(self.direction), "cases": self.ids[:1], "strengths": [-1, 1]},
            "embed": {"bundle": str(self.root), "cohort": str(self.cohort), "device": "cpu"},
        }[name]


@pytest.fixture(scope="module")
def made(tiny_bundle: Any, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("synthesis")
    table = pd.read_csv(tiny_bundle.cohort)
    table["image"] = [str(tiny_bundle.cohort.parent / image) for image in table["image"]]
    table["id"] = range(100, 100 + len(table))  # MONAI's command line makes numbers of such names
    table.to_csv(folder / "cohort.csv", index=False)
    root = shutil.copytree(tiny_bundle.directory, folder / "bundle", ignore=shutil.ignore_patterns("cache"))
    embeddings = embed(root, folder / "cohort.csv", folder / "embedded", device="cpu").path
    quick = {
        "max_epochs": 1, "batch_size": 2, "val_interval": 1, "mlflow": False, "device": "cpu", "train#dataset#draws": 1,
        "validate#additional_metrics#copying_ratio#num_samples": 8, "latent_network_def#num_layers": 2,
        "latent_inferer#steps": 2,
    }  # fmt: skip
    train_latent(root, embeddings=embeddings, overrides=quick)
    fit_direction(embeddings, folder / "tilt.json", target="tilt")
    return Made(root, folder / "cohort.csv", embeddings, folder / "tilt.json", [str(i) for i in table["id"]])


def run(made: Made, name: str, values: dict[str, Any]) -> None:
    config = made.root / "configs" / f"{name}.json"
    workflow = ConfigWorkflow(str(config), logging_file=False, workflow_type="infer")
    workflow.parser.update({"bundle_root": str(made.root), **values})
    workflow.initialize()
    workflow.run()
    workflow.finalize()


def complaint(made: Made, name: str, values: dict[str, Any]) -> str:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI wraps ours
        run(made, name, values)
    assert find_diffae_error(caught.value) is not None, repr(caught.value)
    return one_line(caught.value)


def keys_of(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {renamed(name).get(argument, argument): value for argument, value in arguments.items()}


def contents(path: Path) -> dict[str, bytes]:
    """What was made, without the cache of preprocessed scans."""
    files = [path, path.with_suffix(".csv")] if path.suffix else list(path.rglob("*"))
    return {file.name: file.read_bytes() for file in files if file.is_file() and ".cache" not in file.parts}


@pytest.mark.parametrize("name", RUNS)
def test_the_keys_are_the_functions_arguments_with_the_same_defaults(name: str) -> None:
    config, function = read(name), RUNS[name]
    parameters = inspect.signature(function).parameters
    expected = {renamed(name).get(parameter, parameter) for parameter in parameters} | {"bundle_root"}
    assert config.keys() == expected | {"imports", "initialize", "run", name}
    component = config[name]
    assert component == {
        "_target_": f"monai_diffae.{name}",
        **{parameter: f"@{renamed(name).get(parameter, parameter)}" for parameter in parameters},
    }
    assert config["run"] == f"%{name}"
    assert config["initialize"] == ["$bundle.check_running_config()"]
    for parameter, about in parameters.items():
        key = renamed(name).get(parameter, parameter)
        if key == "bundle_root":
            assert config[key] == "."
        elif about.default is inspect.Parameter.empty:
            assert config[key] == "???"
        else:
            default = list(about.default) if isinstance(about.default, tuple) else about.default
            assert config[key] == default


@pytest.mark.parametrize("bundle", ["diffae_2d", "diffae_3d"])
@pytest.mark.parametrize("name", RUNS)
def test_the_files_are_what_make_configs_writes(name: str, bundle: str) -> None:
    (command,) = [command for command in COMMANDS if command.config == f"{name}.json"]
    assert (BUNDLES / bundle / "configs" / f"{name}.json").read_text() == as_json(command_config(command))


@pytest.mark.parametrize("name", RUNS)
def test_every_key_is_used(name: str) -> None:
    check_config(read(name))


@pytest.mark.parametrize("name", RUNS)
def test_a_run_makes_the_files_of_the_python_function(made: Made, tmp_path: Path, name: str) -> None:
    suffix = {"fit_direction": ".json", "grade": ".csv"}.get(name, "")
    by_config, by_python = tmp_path / f"config{suffix}", tmp_path / f"python{suffix}"
    arguments = made.arguments(name)
    as_typed = {key: int(value) if isinstance(value, str) and value.isdigit() else value
                for key, value in arguments.items()}  # fmt: skip
    run(made, name, keys_of(name, {**as_typed, "out": str(by_config)}))
    RUNS[name](**arguments, out=by_python)
    ours = {file.replace("config", "python"): content for file, content in contents(by_config).items()}
    assert ours.keys() == contents(by_python).keys()
    assert ours == contents(by_python)
    assert any(not file.endswith(".json") for file in ours) or name == "fit_direction"


def test_a_run_takes_the_python_functions_result_as_its_own(made: Made, tmp_path: Path) -> None:
    arguments = made.arguments("vary")
    vary(**arguments, out=tmp_path / "out")
    before = (tmp_path / "out" / "variations.json").stat().st_mtime_ns
    run(made, "vary", keys_of("vary", {**arguments, "out": str(tmp_path / "out")}))
    assert (tmp_path / "out" / "variations.json").stat().st_mtime_ns == before
    line = complaint(made, "vary", keys_of("vary", {**arguments, "out": str(tmp_path / "out"), "seed": 1}))
    assert "made with other seed" in line


def test_overrides_reach_the_bundles_config(made: Made, tmp_path: Path) -> None:
    arguments = {**made.arguments("vary"), "out": str(tmp_path / "out"), "steps": None, "invert_steps": None}
    values = keys_of("vary", arguments)
    run(made, "vary", {**values, "overrides": {"inferer#steps": 3}})
    record = json.loads((tmp_path / "out" / "variations.json").read_text())
    assert record["made_from"]["steps"] == 3


@pytest.mark.parametrize(
    ("name", "key", "meant"),
    [
        ("generate", "num_image", "num_images"), ("interpolate", "strat", "start"), ("vary", "sead", "seed"),
        ("traverse", "num_component", "num_components"), ("fit_direction", "targt", "target"),
        ("grade", "directon", "direction"), ("edit", "strength", "strengths"), ("edit", "edit#strength", "strengths"),
    ],
)  # fmt: skip
def test_a_misspelt_key_is_refused(made: Made, tmp_path: Path, name: str, key: str, meant: str) -> None:
    line = complaint(made, name, keys_of(name, {**made.arguments(name), "out": str(tmp_path / "o"), key: 1}))
    assert f"unknown config key '{key}'" in line
    assert f"did you mean '{meant}'?" in line


@pytest.mark.parametrize("key", ["max_epochs", "inferer", "case"])
def test_a_key_of_another_config_is_refused(made: Made, tmp_path: Path, key: str) -> None:
    values = keys_of("edit", {**made.arguments("edit"), "out": str(tmp_path / "out")})
    assert f"unknown config key '{key}'" in complaint(made, "edit", {**values, key: 1})


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        (name, parameter)
        for name, function in RUNS.items()
        for parameter, about in inspect.signature(function).parameters.items()
        if about.default is inspect.Parameter.empty and parameter != "bundle"
    ],
)
def test_a_key_that_is_not_set_is_named(made: Made, name: str, argument: str) -> None:
    values = {**made.arguments(name), "out": "never"}
    del values[argument]
    key = renamed(name).get(argument, argument)
    assert complaint(made, name, keys_of(name, values)) == f"{key}: is required; give it a value"


@pytest.mark.parametrize(
    ("name", "key", "value", "words"),
    [
        ("generate", "num_images", "many", "num_images: 'many' cannot be used: input should be a valid integer"),
        ("generate", "side", "left", "side: 'left' is not one of positive, negative"),
        ("generate", "image_format", "gif", "image_format: 'gif' is not one of png, nii.gz"),
        ("generate", "min_probability", 1, "min_probability: 1 is not below 1"),
        ("edit", "strengths", "2", "strengths: '2' cannot be used"),
        ("edit", "strengths", [True], "strengths: [True] cannot be used: input should be a number"),
        ("edit", "cases", "a", "cases: 'a' cannot be used: 'str' instances are not allowed"),
        ("edit", "watch", "age.json", "watch: 'age.json' cannot be used: 'str' instances are not allowed"),
        ("edit", "limit", 0, "limit: 0 is below 1"),
        ("edit", "along", "axis", "along: 'axis' is not one of pattern, weight"),
        ("edit", "split", "rest", "split is 'rest'; it must be 'train', 'val', 'test' or null"),
        ("vary", "overrides", "inferer#steps=5", "cannot be used: input should be a valid dictionary"),
        ("vary", "columns", "image=file", "columns is 'image=file'"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(made: Made, name: str, key: str, value: Any, words: str) -> None:
    line = complaint(made, name, keys_of(name, {**made.arguments(name), "out": "never", key: value}))
    assert words in line


def test_strengths_may_be_what_the_command_line_makes_of_numbers_with_commas(made: Made, tmp_path: Path) -> None:
    values = keys_of("edit", {**made.arguments("edit"), "out": str(tmp_path / "out"), "strengths": (-0.5, 2)})
    run(made, "edit", values)
    assert pd.read_csv(tmp_path / "out" / "edits.csv")["strength"].tolist() == [-0.5, 0, 2]


def test_a_case_that_is_not_there_is_one_line(made: Made, tmp_path: Path) -> None:
    values = keys_of("vary", {**made.arguments("vary"), "out": str(tmp_path / "out"), "case": 99})
    assert "the cohort has no '99'" in complaint(made, "vary", values)


@pytest.mark.slow
def test_monai_runs_one_from_the_command_line(made: Made, tmp_path: Path) -> None:
    arguments = [
        "--config_file", made.root / "configs" / "edit.json", "--bundle_root", made.root, "--dataset_dir", made.cohort,
        "--direction", made.direction, "--output_dir", tmp_path / "edited", "--cases", f"[{made.ids[0]}]",
        "--strengths", "-2,2", "--device", "cpu", "--steps", "2",
    ]  # fmt: skip

    def call(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "monai.bundle", "run", "edit", *map(str, arguments), *more]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)

    done = call()
    assert done.returncode == 0, done.stderr[-4000:]
    table = pd.read_csv(tmp_path / "edited" / "edits.csv")
    assert table["strength"].tolist() == [-2, 0, 2]
    assert table["mse"].to_numpy()[1] == 0
    assert np.isfinite(table["prediction"]).all()
    wrong = call("--strenths", "1")
    errors = [line for line in wrong.stderr.splitlines() if line.startswith("error: ")]
    assert wrong.returncode != 0
    assert len(errors) == 1
    assert "did you mean 'strengths'" in errors[0]
    assert "Traceback" not in wrong.stderr
