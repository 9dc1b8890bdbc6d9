"""The bundle run ``embed``: its JSON is the command's signature, and it makes the command's files."""

import json
import shutil
from pathlib import Path

import pytest
from monai.bundle import ConfigWorkflow

import monai_diffae as mdae
from monai_diffae.apps.command_configs import as_json, command_config
from monai_diffae.apps.commands import COMMANDS
from monai_diffae.bundle.config import check_config
from monai_diffae.errors import find_diffae_error, one_line

BUNDLES = Path(__file__).parents[2] / "bundles"


def run(bundle, values):
    workflow = ConfigWorkflow(str(bundle / "configs" / "embed.json"), logging_file=False, workflow_type="infer")
    workflow.parser.update({"bundle_root": str(bundle), **values})
    workflow.initialize()
    workflow.run()
    workflow.finalize()


def complaint(bundle, values):
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI wraps our errors
        run(bundle, values)
    assert find_diffae_error(caught.value) is not None, repr(caught.value)
    return one_line(caught.value)


@pytest.mark.parametrize("bundle", ["diffae_2d", "diffae_3d"])
def test_the_file_is_current_and_every_key_is_used(bundle):
    (command,) = (command for command in COMMANDS if command.name == "embed")
    text = (BUNDLES / bundle / "configs" / "embed.json").read_text(encoding="utf-8")
    assert text == as_json(command_config(command))
    check_config(json.loads(text))


def test_the_run_makes_the_files_of_the_function(tiny_bundle, tmp_path):
    bundle = shutil.copytree(tiny_bundle.directory, tmp_path / "bundle", ignore=shutil.ignore_patterns("cache"))
    cohort = str(tiny_bundle.cohort)
    values = {"dataset_dir": cohort, "output_dir": str(tmp_path / "a"), "device": "cpu", "overrides": {"seed": 3}}
    run(bundle, values)
    mdae.embed(bundle, cohort, tmp_path / "b", device="cpu", overrides={"seed": 3})
    for name in ("embeddings.parquet", "embeddings.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert mdae.embed(bundle, cohort, tmp_path / "a", device="cpu", overrides={"seed": 3}).skipped
    line = complaint(bundle, {**values, "overrides": {}})
    assert line.startswith("embeddings.parquet: exists and was made with other overrides; set overwrite")


def test_wrong_keys_and_values_are_one_line(tiny_bundle, tmp_path):
    values = {"dataset_dir": str(tiny_bundle.cohort), "output_dir": str(tmp_path / "o"), "device": "cpu"}
    for key in ("dataset_dir", "output_dir"):
        without = {name: value for name, value in values.items() if name != key}
        assert complaint(tiny_bundle.directory, without) == f"{key}: is required; give it a value"
    line = complaint(tiny_bundle.directory, {**values, "batch_sise": 1})
    assert "unknown config key 'batch_sise'" in line
    assert "did you mean 'batch_size'?" in line
    assert "overlap: applies to patches" in complaint(tiny_bundle.directory, {**values, "overlap": 0.5})
    assert "pool" in complaint(tiny_bundle.directory, {**values, "pool": "max"})
    assert not (tmp_path / "o").exists()
