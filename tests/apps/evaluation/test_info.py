import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_bundles import copy_tiny, rewrite

from monai_diffae.apps.evaluation.info import info
from monai_diffae.bundle.folders import describe_folder, init_bundle


def test_the_properties_of_a_model_and_its_description(run, tiny_bundle):
    result = info(tiny_bundle.directory)
    summary = result.figures
    assert (summary["steps"], summary["invert_steps"], summary["solver"]) == (3, 4, "adams")
    assert (summary["kind"], summary["image_size"], summary["z_channels"]) == ("autoencoder", [16, 16], 8)
    assert result.description["inferer"]["_target_"] == "monai_diffae.inferers.DiffusionAutoencoderInferer"
    shown = run("info", tiny_bundle.directory)[1].splitlines()
    assert {"solver: adams", "own code: none", "image_size: 16, 16"} < set(shown)
    assert not [line for line in shown if set("[{#") & set(line)]
    assert run("info", tiny_bundle.directory / "models" / "model.safetensors")[1].splitlines() == shown
    assert json.loads(run("info", tiny_bundle.directory, "--json")[1]) == result.figures
    assert (summary["organ"], summary["field_of_view"]) == (None, "the whole image, resized to 16 x 16 pixels")
    unsaid = "organ, modality, training data, intended use; add lines such as: - **Organ**: ..."
    assert f"docs/README.md does not say this model's {unsaid}" in shown


def test_the_command_is_quick_as_it_builds_no_network(tiny_bundle):
    code = [sys.executable, "-X", "importtime", "-m", "monai_diffae", "info", str(tiny_bundle.directory)]
    imported = subprocess.run(code, capture_output=True, text=True, check=True).stderr
    assert {name for name in ("torch", "monai") if f"| {name}\n" in imported} == set()


@pytest.mark.parametrize("kind", ["2d", "3d"])
def test_a_card_says_what_a_model_is_for_and_a_new_training_keeps_it(kind, tmp_path, run):
    bundle = init_bundle(tmp_path / "new", copy_tiny(tmp_path / "tiny", kind))
    card = bundle / "docs" / "README.md"
    asked = "- **Organ**: Say here which\n"
    text = card.read_text().replace(asked, "- **Organ**: heart\n  and\x1b[1m lungs\n")
    card.write_text(text)
    describe_folder(bundle)
    assert card.read_text() == text.replace(asked, "")
    lines = run("info", bundle)[1].splitlines()
    assert lines[:2] == ["organ: heart and[1m lungs", "unintended_use: Diagnosis and other decisions about patients."]
    field = {
        "2d": "the whole image, resized to 16 x 16 pixels",
        "3d": "224 x 224 x 224 mm, in voxels of 14 x 14 x 14 mm",
    }
    assert lines[2] == f"field_of_view: {field[kind]}"


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
