"""The bundle runs of the commands: their keys are the functions' arguments, and they make the same files."""

import inspect
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

KEYS = {"bundle": "bundle_root", "cohort": "dataset_dir", "out": "output_dir"}
RUNS = ["embed", "generate", pytest.param("evaluate", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def made(tiny_bundle, tmp_path_factory):
    """A bundle with a latent model, and its cohort, whose ids look like numbers."""
    folder = tmp_path_factory.mktemp("runs")
    table = pd.read_csv(tiny_bundle.cohort)
    table["image"] = [str(tiny_bundle.cohort.parent / image) for image in table["image"]]
    table["id"] = range(100, 100 + len(table))  # MONAI's command line makes numbers of such names
    table.to_csv(folder / "cohort.csv", index=False)
    root = copy_tiny(folder / "bundle", "2d_all", ignore=("fast*",))
    return SimpleNamespace(root=root, cohort=folder / "cohort.csv")


def arguments(made, name):
    """What a run needs and what makes it quick, under the function's names, without ``out``."""
    bundle = {"bundle": str(made.root), "cohort": str(made.cohort)}
    return {
        "embed": {**bundle, "device": "cpu", "overrides": {"seed": 3}},
        "generate": {"bundle": str(made.root), "steps": 2, "device": "cpu", "num_images": 2},
        "evaluate": {**bundle, "steps": [2], "device": "cpu"},
    }[name]


def keys_of(values):
    return {KEYS.get(argument, argument): value for argument, value in values.items()}


def run(made, name, values):
    """Run with values under the function's names."""
    workflow = ConfigWorkflow(str(made.root / "configs" / f"{name}.json"), logging_file=False, workflow_type="infer")
    workflow.parser.update({"bundle_root": str(made.root), **keys_of(values)})
    workflow.initialize()
    workflow.run()
    workflow.finalize()


def contents(path):
    """What was made, without the cache of preprocessed scans."""
    return {file.name: file.read_bytes() for file in path.rglob("*") if file.is_file() and ".cache" not in file.parts}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_makes_the_files_of_the_python_function(made, tmp_path, name):
    by_config, by_python = (tmp_path / way for way in ("config", "python"))
    values = arguments(made, name)
    run(made, name, {**values, "out": str(by_config)})
    getattr(monai_diffae, name)(**values, out=by_python)
    assert contents(by_config).keys() == contents(by_python).keys()
    assert contents(by_config) == contents(by_python)
    assert any(not file.endswith(".json") for file in contents(by_python))


def test_a_run_takes_the_python_functions_result_as_its_own(made, tmp_path):
    values = {**arguments(made, "generate"), "out": tmp_path / "out"}
    monai_diffae.generate(**values)
    before = (tmp_path / "out" / "record.json").stat().st_mtime_ns
    run(made, "generate", {**values, "out": str(tmp_path / "out")})
    assert (tmp_path / "out" / "record.json").stat().st_mtime_ns == before
    line = complaint(run, made, "generate", {**values, "out": str(tmp_path / "out"), "seed": 1})
    assert "made with other seed" in line


@pytest.mark.parametrize("name", ["embed", "generate", "evaluate"])
def test_a_key_that_is_not_set_is_named(made, name):
    """The last argument without a default."""
    parameters = inspect.signature(getattr(monai_diffae, name)).parameters.items()
    needed = [key for key, about in parameters if about.default is inspect.Parameter.empty and key != "bundle"]
    values = {**arguments(made, name), "out": "never"}
    del values[needed[-1]]
    (key,) = keys_of({needed[-1]: None})
    assert complaint(run, made, name, values) == f"{key}: is required; give it a value"


def test_the_evaluator_of_evaluate_measures_what_the_command_measures(made, tmp_path):
    workflow = ConfigWorkflow(str(made.root / "configs" / "evaluate.json"), logging_file=False, workflow_type="eval")
    paths = {"bundle_root": str(made.root), "dataset_dir": str(made.cohort), "output_dir": str(tmp_path)}
    overrides = {"inferer#invert_steps": 3, "inferer#invert_tolerance": None}
    workflow.parser.update({**paths, "device": "cpu", "overrides": overrides})
    workflow.initialize()
    evaluator = workflow.parser.get_parsed_content("evaluator")
    evaluator.run()
    options = {"bundle": made.root, "cohort": made.cohort, "steps": [3], "num_codes": 0, "device": "cpu"}
    rows = monai_diffae.evaluate(tmp_path / "out", **options).figures["rows"]
    values = {row["metric"]: row["value"] for row in rows if row["table"] == "reconstruction"}
    assert evaluator.state.metrics["ssim"] == pytest.approx(values["ssim"], abs=1e-4)
    assert evaluator.state.metrics["psnr"] == pytest.approx(values["psnr"], rel=1e-4)


@pytest.mark.slow
def test_monai_runs_one_from_the_command_line(made, tmp_path):
    settings = {
        "config_file": made.root / "configs" / "generate.json", "bundle_root": made.root, "num_images": 2,
        "output_dir": tmp_path / "generated", "device": "cpu", "steps": "2",
    }  # fmt: skip
    command = [sys.executable, "-m", "monai.bundle", "run", "generate"]
    command += [str(x) for key, value in settings.items() for x in (f"--{key}", value)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert len(list((tmp_path / "generated" / "images").iterdir())) == 2
    wrong = subprocess.run([*command, "--stepps", "1"], capture_output=True, text=True, env=env, timeout=300)
    errors = [line for line in wrong.stderr.splitlines() if line.startswith("error: ")]
    assert wrong.returncode != 0
    assert len(errors) == 1
    assert "did you mean 'steps'" in errors[0]
    assert "Traceback" not in wrong.stderr
