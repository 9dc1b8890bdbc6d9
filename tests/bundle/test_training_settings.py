import json
import shutil
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from monai_diffae.bundle.training_settings import read_training_settings, training_settings
from monai_diffae.errors import ConfigError

ROOT = Path(__file__).parents[2] / "bundles" / "diffae_2d"


def remembered(overrides=None, files=(), bundle=ROOT):
    """The settings that a run of the shipped bundle remembers."""
    parser = ConfigParser()
    parser.read_config([str(bundle / "configs" / "train.json"), *map(str, files)])
    parser.update({"bundle_root": str(bundle), **(overrides or {})})
    parser.parse()
    return training_settings(parser.get())


def test_what_the_training_did_not_change_is_not_remembered():
    assert remembered() == {}


def test_values_lists_and_new_arguments_are_remembered_by_their_ids():
    overrides = {
        "max_epochs": 3, "image_size": [16, 16], "network_def#unet#dropout": 0.1, "inferer#batch_size": 7,
        "columns#image": "file", "augmentation#transforms#1#prob": 0.25, "strides": None,
    }  # fmt: skip
    assert remembered(overrides) == {key: value for key, value in overrides.items() if key != "strides"}


def test_neither_the_machine_nor_anything_private_is_remembered():
    overrides = {
        "device": "cpu", "workers": 3, "overwrite": True, "start_from": "/home/doe/model", "dataset_dir": "/home/doe",
        "output_dir": "out", "patient_pattern": "(doe)", "tracking_uri": "sqlite:///doe", "rank": 1, "world_size": 2,
        "train#dataset#cache_dir": "/home/doe", "run_name": "scans/doe", "experiment_name": "mine",
    }  # fmt: skip
    assert remembered(overrides) == {"experiment_name": "mine"}


@pytest.mark.parametrize("overlay", ["ct", "paper_64", "encoder_view", "second_modality", "demo"])
def test_remembered_settings_are_an_overlay_with_the_same_effect(tmp_path, overlay):
    files = [ROOT.parents[1] / "configs" / f"{overlay}.json"]
    (tmp_path / "training.json").write_text(json.dumps(remembered(files=files)))
    assert remembered(files=[tmp_path / "training.json"]) == remembered(files=files) != {}
    assert remembered(files=[*files, tmp_path / "training.json"]) == remembered(files=files)


def test_a_path_that_an_overlay_needs_has_to_be_given_again(tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps({"mine_bundle": "???", "inferer#mine": "$@mine_bundle + '/models'"}))
    expected = {"mine_bundle": "???", "inferer#mine": "$@mine_bundle + '/models'"}
    assert remembered({"mine_bundle": "/home/doe/mine"}, [tmp_path / "mine.json"]) == expected


def test_several_gpus_leave_nothing_that_binds_one():
    files = [ROOT / "configs" / "multi_gpu_train.json"]
    assert remembered(files=files) == {}
    assert remembered({"max_epochs": 3, "initialize#3": "$None"}, files) == {"max_epochs": 3, "initialize#3": "$None"}


def test_a_bundle_without_its_configuration_remembers_nothing(tmp_path):
    assert training_settings({"bundle_root": str(tmp_path), "max_epochs": 3}) == {}


def test_the_pattern_of_patients_is_read_from_the_models_own_configuration(tmp_path):
    (tmp_path / "training.json").write_text(json.dumps({"_meta_": {"started_from": "f"}, "max_epochs": 3}))
    assert read_training_settings(tmp_path) == {"max_epochs": 3}
    (tmp_path / "config.json").write_text(json.dumps({"patient_pattern": "sub-(.*)"}))
    assert read_training_settings(tmp_path) == {"max_epochs": 3, "patient_pattern": "sub-(.*)"}
    (tmp_path / "config.json").write_text(json.dumps({"patient_pattern": "???"}))  # exported
    assert read_training_settings(tmp_path) == {"max_epochs": 3}


@pytest.mark.parametrize("content", ["", "[1]", "{"])
def test_a_damaged_file_is_one_line(tmp_path, content):
    (tmp_path / "training.json").write_text(content)
    with pytest.raises(ConfigError, match=r"^training\.json: cannot be read; remove it, and give the settings of"):
        read_training_settings(tmp_path)


def test_all_values_of_an_edited_configuration_that_nothing_overrides_stay(tmp_path):
    bundle = shutil.copytree(ROOT, tmp_path / "bundle")
    file = bundle / "configs" / "train.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "learning_rate": 0.5}))
    assert remembered({"max_epochs": 3}, bundle=bundle) == {"max_epochs": 3}
