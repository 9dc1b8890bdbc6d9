import json

import pytest

from monai_diffae.apps.training.train import train
from monai_diffae.errors import ConfigError


def test_train_fills_the_bundle_with_weights_and_their_config(tiny_bundle):
    models = tiny_bundle.directory / "models"
    assert (models / "model.pt").is_file()
    assert json.loads((models / "config.json").read_text())["image_size"] == [16, 16]
    assert not (tiny_bundle.directory / "mlflow.db").exists()  # our key `mlflow`, not MONAI's argument


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"max_epoch": 1}, "did you mean 'max_epochs'"),
        ({"mlflow": False, "device": "cpu"}, "another model"),
        ({"nope#x": 1}, "nope#x: the configuration has no such key"),
        ({"max_epochs#x": 1}, "max_epochs#x: the configuration has no such key"),
    ],
)
def test_train_raises_one_clear_error_of_ours(tiny_bundle, overrides, message):
    with pytest.raises(ConfigError, match=message):
        train(tiny_bundle.directory, tiny_bundle.cohort, overrides=overrides)


def test_train_refuses_a_folder_that_is_no_bundle(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no configs/train\.json"):
        train(tmp_path)


def test_train_refuses_an_overlay_that_is_not_there(tiny_bundle):
    with pytest.raises(ConfigError, match=r"^overlays: there is no file gone\.json; "):
        train(tiny_bundle.directory, tiny_bundle.cohort, overlays=["gone.json"])
