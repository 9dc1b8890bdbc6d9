"""``reconstruct``, its bundle run, and the evaluator for MONAI's tools: one program, one result."""

import json
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from complaints import complaint
from monai.bundle import ConfigWorkflow
from tiny_bundles import contents, rewrite

from monai_diffae.apps.synthesis.reconstruct import reconstruct


@pytest.fixture(scope="module")
def bundle(tiny_bundle, tmp_path_factory):
    """A bundle whose training had a seed of its own, which must not become that of the noise."""
    folder = tmp_path_factory.mktemp("inference") / "bundle"
    shutil.copytree(tiny_bundle.directory, folder, ignore=shutil.ignore_patterns("cache"))
    rewrite(folder, dict, seed=7)
    return folder


def workflow(bundle, cohort, out, **values):
    file = str(bundle / "configs" / "inference.json")
    made = ConfigWorkflow(file, str(bundle / "configs" / "metadata.json"), logging_file=False, workflow_type="infer")
    paths = {"bundle_root": str(bundle), "dataset_dir": str(cohort), "output_dir": str(out)}
    made.parser.update({**paths, "device": "cpu", **values})
    made.initialize()
    return made


def evaluate(bundle, cohort, out, **values):
    made = workflow(bundle, cohort, out, **values)
    assert made.check_properties() == []
    made.evaluator.run()


@pytest.mark.parametrize("run_id", ["run", "reconstruct"])
def test_the_run_makes_the_files_of_the_command(tiny_bundle, bundle, tmp_path, run_id):
    options = {"mode": "both", "split": "test", "batch_size": 2, "steps": 2}
    reconstruct(bundle, tiny_bundle.cohort, tmp_path / "command", device="cpu", **options)
    workflow(bundle, tiny_bundle.cohort, tmp_path / "run", **options)._run_expr(run_id)
    command = contents(tmp_path / "command")
    assert command.keys() >= {"reconstructions.csv", "record.json", "mosaic.png"}
    assert contents(tmp_path / "run") == command


def test_values_of_the_model_are_the_overrides_of_the_command(tiny_bundle, bundle, tmp_path):
    changes = {"percentiles": [5, 95]}
    options = {"overrides": changes, "steps": 2, "limit": 2}
    reconstruct(bundle, tiny_bundle.cohort, tmp_path / "command", device="cpu", **options)
    workflow(bundle, tiny_bundle.cohort, tmp_path / "run", **options).run()
    assert contents(tmp_path / "run") == contents(tmp_path / "command")
    record = json.loads((tmp_path / "run" / "record.json").read_text())["made_from"]
    assert (record["steps"], record["overrides"]) == (2, changes)
    assert "percentiles" in complaint(workflow, bundle, tiny_bundle.cohort, tmp_path, percentiles=[5, 95])


# -- the evaluator, for tools that take MONAI's components ------------------------------------------------------------


@pytest.mark.parametrize(("mode", "grid"), [("x_T", "native"), ("z_sem", "model")])
def test_the_evaluator_writes_the_images_of_the_command(tiny_bundle, bundle, tmp_path, mode, grid):
    options = {"mode": mode, "grid": grid, "batch_size": 5}
    options["split"] = "train"
    reconstruct(bundle, tiny_bundle.cohort, tmp_path / "command", device="cpu", seed=3, **options)
    evaluate(bundle, tiny_bundle.cohort, tmp_path / "evaluator", noise_seed=3, **options)
    images = contents(tmp_path / "command" / mode)
    assert len(images) > options["batch_size"]
    assert contents(tmp_path / "evaluator") == {f"{mode}/{name}": content for name, content in images.items()}


@pytest.mark.slow
def test_the_evaluator_takes_the_same_cases_and_lists_the_same_failures(tiny_bundle, bundle, tmp_path):
    names = [f"case-{i}" for i in range(4)]
    for i, name in enumerate(names):
        values = np.arange(320.0).reshape(16, 20, 1) * (np.nan if i == 1 else 1)
        nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / f"{name}.nii.gz")
    table = pd.DataFrame({"image": [f"{name}.nii.gz" for name in names], "id": names, "split": "test"})
    table.to_csv(tmp_path / "cohort.csv", index=False)
    for options in ({"limit": 3}, {"cases": ["case-3", "case-1", "case-0"]}):
        folder = tmp_path / next(iter(options))
        reconstruct(bundle, tmp_path / "cohort.csv", folder / "command", device="cpu", mode="z_sem", **options)
        evaluate(bundle, tmp_path / "cohort.csv", folder / "evaluator", mode="z_sem", **options)
        command = contents(folder / "command")
        made = contents(folder / "evaluator")
        assert made == {name: command[name] for name in made}
        assert made.keys() == {name for name in command if name.endswith((".nii.gz", "failures.csv"))}
        assert len(made) == 3


@pytest.mark.slow
def test_the_evaluator_replaces_files_only_if_asked(tiny_bundle, bundle, tmp_path):
    reconstruct(bundle, tiny_bundle.cohort, tmp_path, device="cpu", limit=1)
    assert "exists; set overwrite" in complaint(evaluate, bundle, tiny_bundle.cohort, tmp_path, limit=1)
    evaluate(bundle, tiny_bundle.cohort, tmp_path, limit=1, overwrite=True)
