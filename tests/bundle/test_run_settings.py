"""Values of bundle runs: what a training remembers, what a run overrides, and how ``monai.bundle`` shows errors."""

import json
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from monai_diffae.bundle.training_settings import read_training_settings, training_settings

ROOT = Path(__file__).parents[2] / "bundles" / "diffae_2d"


# -- the settings that a training remembers ----------------------------------------------------------------------------


def remembered(overrides=None, files=()):
    """The settings that a run of the shipped bundle remembers."""
    parser = ConfigParser()
    parser.read_config([str(ROOT / "configs" / "train.json"), *map(str, files)])
    parser.update({"bundle_root": str(ROOT), **(overrides or {})})
    parser.parse()
    return training_settings(parser.get())


def test_changed_values_are_remembered_by_their_ids_and_nothing_of_the_machine_or_private():
    changed = {
        "max_epochs": 3, "image_size": [16, 16], "network_def#unet#dropout": 0.1, "inferer#batch_size": 7,
        "columns#image": "file", "augmentation#transforms#1#prob": 0.25, "experiment_name": "mine",
    }  # fmt: skip
    others = {
        "device": "cpu", "workers": 3, "overwrite": True, "start_from": "/home/doe/model", "dataset_dir": "/home/doe",
        "output_dir": "out", "patient_pattern": "(doe)", "tracking_uri": "sqlite:///doe", "rank": 1, "world_size": 2,
        "train#dataset#cache_dir": "/home/doe", "run_name": "scans/doe", "strides": None,
    }  # fmt: skip
    assert remembered() == {}
    assert remembered({**changed, **others}) == changed


def test_remembered_settings_are_an_overlay_with_the_same_effect(tmp_path):
    files = [ROOT.parents[1] / "configs" / "ct.json"]
    (tmp_path / "training.json").write_text(json.dumps(remembered(files=files)))
    assert remembered(files=[tmp_path / "training.json"]) == remembered(files=files) != {}
    assert remembered(files=[*files, tmp_path / "training.json"]) == remembered(files=files)


def test_settings_are_read_with_the_pattern_of_patients_of_the_models_own_configuration(tmp_path):
    (tmp_path / "training.json").write_text(json.dumps({"_meta_": {"started_from": "f"}, "max_epochs": 3}))
    (tmp_path / "config.json").write_text(json.dumps({"patient_pattern": "sub-(.*)"}))
    assert read_training_settings(tmp_path) == {"max_epochs": 3, "patient_pattern": "sub-(.*)"}


# -- the overrides of a run --------------------------------------------------------------------------------------------


SHIPPED = {
    "columns": {}, "steps": 20, "image_size": [64, 64],
    "network_def": {"_target_": "N", "size": "@image_size"},
    "preprocessing": {"transforms": [{"_target_": "Read"}, {"_target_": "Resized", "spatial_size": 64}]},
    "inferer": {"_target_": "I", "steps": "@steps", "invert_steps": None},
    "cohort": {"_target_": "C", "columns": "@columns", "step": 2},
}  # fmt: skip
TRAINED = {**SHIPPED, "columns": {"image": "file"}, "image_size": [32, 32], "steps": 10}


@pytest.fixture
def found(tmp_path):
    """The overrides of a run: of a bundle with both files, and of what runs."""
    for folder, name, content in (("configs", "inference", SHIPPED), ("models", "config", TRAINED)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.json").write_text(json.dumps(content))

    def find(running, overrides=None, **changes):
        imports = ["$import monai_diffae.bundle as bundle"]
        parser = ConfigParser({"imports": imports, **json.loads(json.dumps(running))})
        parser.update(changes)
        parser["given"], parser["root"] = overrides or {}, str(tmp_path)
        parser["result"] = "$bundle.run_overrides(@root, @given)"
        return parser.get_parsed_content("result")

    return find


@pytest.mark.parametrize("running", [SHIPPED, TRAINED], ids=["alone", "with the trained model's config"])
def test_values_that_a_run_changes_become_overrides(found, running, caplog):
    assert found(running) == {}
    warns = "the trained model's values of image_size, steps, from models/config.json" in caplog.text
    assert warns == (running is SHIPPED)
    assert found(running, **{"inferer#invert_steps": 5}) == {"inferer#invert_steps": 5}
    changes = {"preprocessing#transforms#1#spatial_size": 48, "image_size": [48, 48]}
    assert found(running, **changes) == changes
    assert found(running, **{"cohort#step": 1}, columns={"image": "scan"}) == {"cohort#step": 1}


def test_values_that_a_run_adds_replaces_or_leaves_out(found):
    assert found(TRAINED, **{"inferer#batch_size": 7}) == {"inferer#batch_size": 7}
    assert found(TRAINED, inferer={"_target_": "I", "steps": 3}) == {"inferer": {"_target_": "I", "steps": 3}}
    assert found({key: value for key, value in TRAINED.items() if key != "cohort"}) == {}
    assert found(TRAINED, {"steps": 4, "device": "cpu"}, steps=5) == {"steps": 4, "device": "cpu"}


# -- errors and log lines in ``python -m monai.bundle``, and nowhere else ----------------------------------------------
