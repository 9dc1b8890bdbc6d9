"""The bundle runs of the commands, and MONAI's evaluators of the same: one program, one result."""

import json
from types import SimpleNamespace

import pandas as pd
import pytest
from complaints import complaint
from monai.bundle import ConfigWorkflow
from tiny_bundles import contents, copy_tiny, rewrite

import monai_diffae

KEYS = {"bundle": "bundle_root", "cohort": "dataset_dir", "out": "output_dir"}
RUNS = ["embed", "generate", pytest.param("evaluate", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def made(tiny_bundle, tmp_path_factory):
    """A bundle with a latent model, whose training had a seed of its own, and a cohort whose ids look like numbers."""
    folder = tmp_path_factory.mktemp("runs")
    table = pd.read_csv(tiny_bundle.cohort)
    table["image"] = [str(tiny_bundle.cohort.parent / image) for image in table["image"]]
    table["id"] = range(100, 100 + len(table))  # MONAI's command line makes numbers of such names
    table.to_csv(folder / "cohort.csv", index=False)
    root = copy_tiny(folder / "bundle", "2d_all", ignore=("fast*", "latent*"))
    rewrite(root, dict, seed=7)  # which must not become that of the noise
    return SimpleNamespace(root=root, cohort=folder / "cohort.csv", generator=copy_tiny(folder / "generator", "2d_all"))


def arguments(made, name):
    """What a run needs and what makes it quick, under the function's names, without ``out``."""
    bundle = {"bundle": str(made.root), "cohort": str(made.cohort), "device": "cpu"}
    return {
        "embed": {**bundle, "overrides": {"seed": 3}},
        "generate": {"bundle": str(made.generator), "steps": 2, "device": "cpu", "num_images": 2},
        "evaluate": {**bundle, "steps": [2]},
        "reconstruct": {**bundle, "mode": "both", "split": "test", "batch_size": 2, "steps": 2, "limit": 2},
    }[name]


def workflow(made, name, values, kind="infer"):
    """With values under the function's names."""
    root, config = values.get("bundle", made.root), "evaluate" if name == "evaluate" else "inference"
    file, metadata = (f"{root}/configs/{each}.json" for each in (config, "metadata"))
    run_id = name if name in ("embed", "generate") else "run"
    opened = ConfigWorkflow(file, metadata, logging_file=False, workflow_type=kind, run_id=run_id)
    opened.parser.update({"bundle_root": str(root), **{KEYS.get(key, key): value for key, value in values.items()}})
    opened.initialize()
    return opened


@pytest.mark.parametrize("name", RUNS)
def test_a_run_makes_the_files_of_the_python_function(made, tmp_path, name):
    by_config, by_python = (tmp_path / way for way in ("config", "python"))
    values = arguments(made, name)
    workflow(made, name, {**values, "out": str(by_config)}).run()
    getattr(monai_diffae, name)(**values, out=by_python)
    assert contents(by_config) == contents(by_python)
    assert any(not file.endswith(".json") for file in contents(by_python))


def test_inference_can_run_reconstruct_whose_overrides_are_values_of_the_model(made, tmp_path):
    values = {**arguments(made, "reconstruct"), "overrides": {"percentiles": [5, 95]}}
    monai_diffae.reconstruct(**values, out=tmp_path / "command")
    workflow(made, "reconstruct", {**values, "out": str(tmp_path / "run")})._run_expr("reconstruct")
    command = contents(tmp_path / "command")
    assert command.keys() >= {"reconstructions.csv", "record.json", "mosaic.png"}
    assert contents(tmp_path / "run") == command
    record = json.loads(command["record.json"])["made_from"]
    assert (record["steps"], record["overrides"]) == (2, values["overrides"])


def test_a_key_that_is_not_set_or_unknown_is_named(made, tmp_path):
    for name, values, key in (("embed", {}, "dataset_dir"), ("evaluate", {"cohort": str(made.cohort)}, "output_dir")):
        run = workflow(made, name, {**values, "device": "cpu"}).run
        assert complaint(run) == f"{key}: is required; give it a value"
    values = {**arguments(made, "reconstruct"), "out": str(tmp_path), "percentiles": [5, 95]}
    assert "percentiles" in complaint(workflow, made, "reconstruct", values)


@pytest.mark.parametrize(("mode", "grid"), [("x_T", "native"), ("z_sem", "model")])
def test_evaluating_writes_the_images_of_reconstruct(made, tmp_path, mode, grid):
    bundle = {"bundle": str(made.root), "cohort": str(made.cohort), "device": "cpu"}
    options = {**bundle, "mode": mode, "grid": grid, "batch_size": 5, "split": "train", "steps": 2}
    monai_diffae.reconstruct(**options, out=tmp_path / "command", seed=3)
    opened = workflow(made, "reconstruct", {**options, "out": str(tmp_path / "evaluator"), "noise_seed": 3})
    assert opened.check_properties() == []
    opened.run()
    images = contents(tmp_path / "command" / mode)
    assert len(images) > options["batch_size"]
    assert contents(tmp_path / "evaluator") == {f"{mode}/{name}": content for name, content in images.items()}


def test_the_evaluator_of_evaluate_measures_what_the_command_measures(made, tmp_path):
    overrides = {"inferer#invert_steps": 3, "inferer#invert_tolerance": None}
    values = {"bundle": str(made.root), "cohort": str(made.cohort), "out": str(tmp_path), "device": "cpu"}
    opened = workflow(made, "evaluate", {**values, "overrides": overrides}, kind="eval")
    evaluator = opened.parser.get_parsed_content("evaluator")
    evaluator.run()
    options = {"bundle": made.root, "cohort": made.cohort, "steps": [3], "num_codes": 0, "device": "cpu"}
    rows = monai_diffae.evaluate(tmp_path / "out", **options).figures["rows"]
    values = {row["metric"]: row["value"] for row in rows if row["table"] == "reconstruction"}
    assert evaluator.state.metrics["ssim"] == pytest.approx(values["ssim"], abs=1e-4)
    assert evaluator.state.metrics["psnr"] == pytest.approx(values["psnr"], rel=1e-4)
