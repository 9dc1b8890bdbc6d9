"""The command ``init``; what it copies is tested in tests/bundle/test_folders.py."""

import json

import pytest

from monai_diffae.apps.training.init import init
from monai_diffae.errors import ConfigError


def test_a_shipped_bundle_is_copied(tmp_path):
    result = init(tmp_path / "mine", bundle="diffae_3d")
    folder, following = result.lines()
    assert folder == str(tmp_path / "mine")
    assert following.startswith("next: monai-diffae train ")
    assert result.figures() == {"folder": str(tmp_path / "mine")}
    assert json.loads((tmp_path / "mine" / "configs" / "train.json").read_text())["spatial_dims"] == 3


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(ConfigError, match="mine: is a file; choose a new folder"):
        init(tmp_path / "mine")
    with pytest.raises(ConfigError, match="the folder is not empty"):
        init(tmp_path)
