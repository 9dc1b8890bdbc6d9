import json

import pytest

from monai_diffae.apps.evaluation.info import info
from monai_diffae.errors import ConfigError


def test_the_properties_of_a_bundle_and_its_decoding_settings(tiny_bundle):
    summary = info(tiny_bundle.directory).summary
    assert list(summary) == [
        "spatial_dims", "in_channels", "image_size", "image_keys", "intensity", "model_range", "z_channels",
        "parameters", "steps", "invert_steps", "solver", "inversion", "spacing", "z_sem_usage", "sha256",
    ]  # fmt: skip
    assert (summary["steps"], summary["invert_steps"], summary["solver"]) == (3, 4, "adams")
    assert summary["image_size"] == [16, 16]


def test_the_command(run, tiny_bundle):
    assert "solver: adams\n" in run("info", tiny_bundle.directory)[1]
    assert json.loads(run("info", tiny_bundle.directory, "--json")[1]) == info(tiny_bundle.directory).summary


def test_a_folder_that_is_not_a_trained_bundle_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no models/model\.pt"):
        info(tmp_path)
