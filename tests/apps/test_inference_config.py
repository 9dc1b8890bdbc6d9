"""``inference.json`` is generated from the command, from ``train.json``, and from MONAI's components."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest

from monai_diffae.apps.command_configs import as_json
from monai_diffae.apps.commands import COMMANDS
from monai_diffae.apps.inference_config import inference_config
from monai_diffae.bundle import model_config

BUNDLES = [Path(__file__).parents[2] / "bundles" / name for name in ("diffae_2d", "diffae_3d")]
(RECONSTRUCT,) = [command for command in COMMANDS if command.name == "reconstruct"]


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_the_shipped_file_is_current(bundle: Path) -> None:
    text = (bundle / "configs" / "inference.json").read_text()
    assert text == as_json(inference_config(RECONSTRUCT, bundle))


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_it_describes_the_model_as_train_json_does_and_calls_the_command(bundle: Path) -> None:
    train = json.loads((bundle / "configs" / "train.json").read_text())
    config = inference_config(RECONSTRUCT, bundle)
    model = {key: value for key, value in model_config(train).items() if key != "imports"}
    assert {key: config[key] for key in model} == model
    assert set(config["imports"]) <= set(train["imports"])
    names = {"bundle": "bundle_root", "cohort": "dataset_dir", "out": "output_dir", "seed": "noise_seed"}
    parameters = inspect.signature(RECONSTRUCT.load()).parameters
    assert config["reconstruct"].keys() == {"_target_", *parameters}
    for name, parameter in parameters.items():
        key = names.get(name, name)
        assert f"@{key}" in config["reconstruct"][name]
        if key not in (*names.values(), "device"):
            default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
            assert config[key] == default
    assert config["noise_seed"] == parameters["seed"].default
    assert config["evaluating"] == ["%reconstruct"]
    assert config["run"] == "%evaluating"


def test_only_imports_that_an_expression_uses_are_kept() -> None:
    flat, volume = (inference_config(RECONSTRUCT, bundle)["imports"] for bundle in BUNDLES)
    assert flat == ["$import monai_diffae.bundle as bundle", "$import monai_diffae.handlers as handlers"]
    assert volume == [*flat, "$import monai_diffae.networks as networks"]
