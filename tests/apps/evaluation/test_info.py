import json
import shutil
from pathlib import Path

import pytest
from tiny_bundles import rewrite

from monai_diffae.apps.evaluation.info import info
from monai_diffae.errors import ConfigError


def test_the_properties_of_a_model_and_its_description(run, tiny_bundle, tmp_path):
    result = info(tiny_bundle.directory)
    summary = result.figures
    assert (summary["steps"], summary["invert_steps"], summary["solver"]) == (3, 4, "adams")
    assert (summary["kind"], summary["image_size"], summary["z_channels"]) == ("autoencoder", [16, 16], 8)
    assert result.description["inferer"]["_target_"] == "monai_diffae.inferers.DiffusionAutoencoderInferer"
    shown = run("info", tiny_bundle.directory)[1].splitlines()
    assert {"solver: adams", "own code: none"} < set(shown)
    assert run("info", tiny_bundle.directory / "models" / "model.safetensors")[1].splitlines() == shown
    assert json.loads(run("info", tiny_bundle.directory, "--json")[1]) == result.figures
    with pytest.raises(ConfigError, match=r"there is no models/model\.safetensors"):
        info(tmp_path)


def test_a_model_of_a_stranger_is_described_without_running_it_and_built_with_trust(tiny_bundle, tmp_path, run):
    """R20"""
    stranger = Path(shutil.copytree(tiny_bundle.directory, tmp_path / "stranger"))
    preprocessing = info(stranger).description["preprocessing"]
    preprocessing["transforms"].append({"_target_": "monai.transforms.Identityd", "keys": "image"})
    rewrite(stranger, preprocessing=preprocessing)
    code, out, _ = run("info", stranger)
    assert code == 0
    assert out.splitlines()[-2:] == [
        "own code: monai.transforms.Identityd", "nothing was run; if you trust the author of this code, add --trust"
    ]  # fmt: skip
    assert "parameters: " not in out
    assert "parameters: " in run("info", stranger, "--trust")[1]
    assert "parameters: " not in run("info", stranger)[1]
