"""The bundle runs of the commands: their keys are the functions' arguments, and they make the same files."""

import inspect
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
from complaints import complaint
from monai.bundle import ConfigWorkflow
from tiny_bundles import copy_tiny

import monai_diffae
from monai_diffae import calibrate, embed, fit_direction

QUICK = {"steps": 2, "invert_steps": 2, "device": "cpu"}
KEYS = {"bundle": "bundle_root", "cohort": "dataset_dir", "out": "output_dir"}
SUFFIX = {"fit_direction": ".json", "grade": ".csv"}  # they write a file, not a folder
FAST_RUNS = ("embed", "generate", "interpolate", "fit_direction", "grade", "edit", "anomaly")
SLOW_RUNS = ("vary", "traverse", "probe", "neighbors", "diagnose", "evaluate")
RUNS = [*FAST_RUNS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_RUNS)]


@pytest.fixture(scope="module")
def made(tiny_bundle, tmp_path_factory):
    """A bundle with a latent model, and what was made of its cohort, whose ids look like numbers."""
    folder = tmp_path_factory.mktemp("runs")
    table = pd.read_csv(tiny_bundle.cohort)
    table["image"] = [str(tiny_bundle.cohort.parent / image) for image in table["image"]]
    table["id"] = range(100, 100 + len(table))  # MONAI's command line makes numbers of such names
    table.to_csv(folder / "cohort.csv", index=False)
    root = copy_tiny(folder / "bundle", "2d_all", ignore=("fast*",))
    calibrate(root, folder / "cohort.csv", draws=1, device="cpu")
    embeddings = embed(root, folder / "cohort.csv", folder / "embedded", device="cpu").path
    fit_direction(embeddings, folder / "tilt.json", target="tilt")
    ids = [str(i) for i in table["id"]]
    return SimpleNamespace(
        root=root, cohort=folder / "cohort.csv", embeddings=embeddings, direction=folder / "tilt.json", ids=ids
    )


def arguments(made, name):
    """What a run needs and what makes it quick, under the function's names, without ``out``."""
    bundle = {"bundle": str(made.root), "cohort": str(made.cohort)}
    table, direction = {"embeddings": str(made.embeddings)}, {"direction": str(made.direction)}
    case = made.ids[0]
    return {
        "embed": {**bundle, "device": "cpu", "overrides": {"seed": 3}},
        "generate": {"bundle": str(made.root), "steps": 2, "device": "cpu", "num_images": 2},
        "interpolate": {**bundle, **QUICK, "start": case, "end": made.ids[1], "num_images": 3},
        "vary": {**bundle, **QUICK, "case": case, "num_images": 2},
        "traverse": {**bundle, **QUICK, **table, "case": case, "strengths": [-1, 1], "num_components": 1},
        "fit_direction": {**table, "target": "tilt"},
        "grade": {**table, **direction},
        "edit": {**bundle, **QUICK, **direction, "cases": [case], "strengths": [-1, 1]},
        "probe": {**table, **bundle, "targets": ["tilt"], "probes": ["linear"], "pixel_baselines": ["intensity"]},
        "neighbors": {**table, **bundle, "k": 2, "cases": made.ids[:2], "device": "cpu"},
        "diagnose": {**bundle, "split": None, "num_levels": 1, "device": "cpu"},
        "evaluate": {**bundle, "steps": [2], "device": "cpu"},
        "anomaly": {**bundle, "cases": made.ids[:2], "device": "cpu"},
    }[name]


def keys_of(name, values):
    names = {"bundle": "bundle_root"} if name in SUFFIX else KEYS
    return {names.get(argument, argument): value for argument, value in values.items()}


def run(made, name, values):
    """Run with values under the function's names."""
    workflow = ConfigWorkflow(str(made.root / "configs" / f"{name}.json"), logging_file=False, workflow_type="infer")
    workflow.parser.update({"bundle_root": str(made.root), **keys_of(name, values)})
    workflow.initialize()
    workflow.run()
    workflow.finalize()


def contents(path):
    """What was made, without the cache of preprocessed scans."""
    files = [path, path.with_suffix(".csv")] if path.suffix else list(path.rglob("*"))
    return {
        file.name.replace("config", "python"): file.read_bytes()
        for file in files
        if file.is_file() and ".cache" not in file.parts
    }


@pytest.mark.parametrize("name", RUNS)
def test_a_run_makes_the_files_of_the_python_function(made, tmp_path, name):
    """MONAI's command line makes numbers of ids."""
    by_config, by_python = (tmp_path / f"{way}{SUFFIX.get(name, '')}" for way in ("config", "python"))
    values = arguments(made, name)
    as_typed = {key: int(v) if isinstance(v, str) and v.isdigit() else v for key, v in values.items()}
    run(made, name, {**as_typed, "out": str(by_config)})
    getattr(monai_diffae, name)(**values, out=by_python)
    assert contents(by_config).keys() == contents(by_python).keys()
    assert contents(by_config) == contents(by_python)
    assert any(not file.endswith(".json") for file in contents(by_python)) or name == "fit_direction"


def test_a_run_takes_the_python_functions_result_as_its_own(made, tmp_path):
    values = {**arguments(made, "vary"), "out": tmp_path / "out"}
    monai_diffae.vary(**values)
    before = (tmp_path / "out" / "variations.json").stat().st_mtime_ns
    run(made, "vary", {**values, "out": str(tmp_path / "out")})
    assert (tmp_path / "out" / "variations.json").stat().st_mtime_ns == before
    line = complaint(run, made, "vary", {**values, "out": str(tmp_path / "out"), "seed": 1})
    assert "made with other seed" in line


@pytest.mark.parametrize("name", ["probe", "neighbors"])
def test_a_run_without_a_cohort_reads_no_image(made, tmp_path, name):
    """``bundle_root`` is always set."""
    quick = {"probe": {"targets": ["tilt"], "probes": ["linear"]}, "neighbors": {}}[name]
    run(made, name, {"embeddings": str(made.embeddings), "out": str(tmp_path / "out"), **quick})
    assert not list(tmp_path.rglob("neighbors.png"))
    made_from = json.loads((tmp_path / "out" / f"{name}.json").read_text())["made_from"]
    assert made_from[{"probe": "pixel_baselines", "neighbors": "images"}[name]] is None


def test_strengths_may_be_what_the_command_line_makes_of_numbers_with_commas(made, tmp_path):
    run(made, "edit", {**arguments(made, "edit"), "out": str(tmp_path / "out"), "strengths": (-0.5, 2)})
    assert pd.read_csv(tmp_path / "out" / "edits.csv")["strength"].tolist() == [-0.5, 0, 2]


@pytest.mark.parametrize("name", ["embed", "vary", "grade", "neighbors"])
def test_a_key_that_is_not_set_is_named(made, name):
    """The last argument without a default."""
    parameters = inspect.signature(getattr(monai_diffae, name)).parameters.items()
    needed = [key for key, about in parameters if about.default is inspect.Parameter.empty and key != "bundle"]
    values = {**arguments(made, name), "out": "never"}
    del values[needed[-1]]
    (key,) = keys_of(name, {needed[-1]: None})
    assert complaint(run, made, name, values) == f"{key}: is required; give it a value"


@pytest.mark.parametrize(
    ("name", "key", "value", "words"),
    [
        ("probe", "prob", 1, "unknown config key 'prob'"),
        ("edit", "cases", "a", "cases: 'a' cannot be used: 'str' instances are not allowed"),
        ("neighbors", "k", 0, "k: 0 is below 1"),
        ("vary", "case", 99, "the cohort has no '99'"),
    ],
)
def test_a_wrong_key_or_value_is_one_line(made, tmp_path, name, key, value, words):
    out = tmp_path / "out"
    assert words in complaint(run, made, name, {**arguments(made, name), "out": str(out), key: value})
    assert not out.exists()


def test_the_evaluator_of_evaluate_measures_what_the_command_measures(made, tmp_path):
    files = [str(made.root / "configs" / "evaluate.json"), str(made.root / "models" / "config.json")]
    workflow = ConfigWorkflow(files, logging_file=False, workflow_type="eval")
    paths = {"bundle_root": str(made.root), "dataset_dir": str(made.cohort), "output_dir": str(tmp_path)}
    workflow.parser.update({**paths, "device": "cpu", "inferer#invert_steps": 3, "inferer#invert_tolerance": None})
    workflow.initialize()
    evaluator = workflow.parser.get_parsed_content("evaluator")
    evaluator.run()
    options = {"bundle": made.root, "cohort": made.cohort, "steps": [3], "num_codes": 0, "device": "cpu"}
    rows = monai_diffae.evaluate(tmp_path / "out", **options).content["rows"]
    values = {row["metric"]: row["value"] for row in rows if row["table"] == "reconstruction"}
    assert evaluator.state.metrics["ssim"] == pytest.approx(values["ssim"], abs=1e-4)
    assert evaluator.state.metrics["psnr"] == pytest.approx(values["psnr"], rel=1e-4)


@pytest.mark.slow
def test_monai_runs_one_from_the_command_line(made, tmp_path):
    settings = {
        "config_file": made.root / "configs" / "edit.json", "bundle_root": made.root, "dataset_dir": made.cohort,
        "direction": made.direction, "output_dir": tmp_path / "edited", "cases": f"[{made.ids[0]}]",
        "strengths": "-2,2", "device": "cpu", "steps": "2",
    }  # fmt: skip
    command = [sys.executable, "-m", "monai.bundle", "run", "edit"]
    command += [str(x) for key, value in settings.items() for x in (f"--{key}", value)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    table = pd.read_csv(tmp_path / "edited" / "edits.csv")
    assert table["strength"].tolist() == [-2, 0, 2]
    assert table["mse"].to_numpy()[1] == 0
    wrong = subprocess.run([*command, "--strenths", "1"], capture_output=True, text=True, env=env, timeout=300)
    errors = [line for line in wrong.stderr.splitlines() if line.startswith("error: ")]
    assert wrong.returncode != 0
    assert len(errors) == 1
    assert "did you mean 'strengths'" in errors[0]
    assert "Traceback" not in wrong.stderr
