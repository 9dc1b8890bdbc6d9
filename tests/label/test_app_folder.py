"""The folder of an app: a copy of the bundle or a reference to it, and what is checked in it."""

import json
import os

import pytest

from monai_diffae.bundle import checksum
from monai_diffae.errors import ConfigError
from monai_diffae.label.app_folder import AppFolder, make_app_folder


def test_the_app_has_its_own_copy_of_the_bundle(tiny_bundle, tmp_path):
    folder = make_app_folder(tmp_path / "app", tiny_bundle.directory, refer=False)
    assert folder.owns_its_bundle
    assert checksum(folder.bundle) == checksum(tiny_bundle.directory)
    assert folder.bundle.resolve().is_relative_to((tmp_path / "app").resolve())
    assert (folder.bundle / "configs" / "train.json").is_file()  # from which training continues
    assert not (folder.bundle / "models" / "checkpoint.pt").exists()
    assert not (folder.bundle / "cache").exists()
    assert "from monai_diffae.label import DiffAEApp" in folder.main.read_text()


def test_the_folder_can_be_moved(tiny_bundle, tmp_path):
    make_app_folder(tmp_path / "app", tiny_bundle.directory, refer=False)
    (tmp_path / "app").rename(tmp_path / "elsewhere")
    assert checksum(AppFolder(tmp_path / "elsewhere").bundle) == checksum(tiny_bundle.directory)


def test_the_app_can_refer_to_the_bundle(tiny_bundle, tmp_path):
    folder = make_app_folder(tmp_path / "app", tiny_bundle.directory, refer=True)
    assert folder.bundle == tiny_bundle.directory.resolve()
    assert not folder.owns_its_bundle
    assert not folder.copied_bundle.exists()


def test_nothing_is_overwritten_and_nothing_is_left(tiny_bundle, tmp_path):
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="the folder is not empty"):
        make_app_folder(tmp_path / "app", tiny_bundle.directory, refer=False)
    assert os.listdir(tmp_path) == ["app"]
    assert os.listdir(tmp_path / "app") == ["notes.txt"]


def test_a_bundle_that_is_not_trained_is_refused(tmp_path):
    from monai_diffae.bundle.folders import init_bundle

    init_bundle(tmp_path / "bundle", "diffae_2d")
    with pytest.raises(ConfigError, match=r"there is no models/model\.pt"):
        make_app_folder(tmp_path / "app", tmp_path / "bundle", refer=False)
    assert os.listdir(tmp_path) == ["bundle"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "has no bundle"),
        ("{}", "has no bundle"),
        ('{"bundle": 3}', "has no bundle"),
        ('{"bundle": "bundle", "colour": "red"}', "'colour' is unknown"),
    ],
)
def test_settings_are_checked(settings, message, tmp_path):
    folder = AppFolder(tmp_path)
    folder.main.write_text("")
    folder.settings_file.write_text(settings)
    with pytest.raises(ConfigError, match=message):
        folder.settings()


def test_another_folder_is_not_an_app(tmp_path):
    (tmp_path / "settings.json").write_text(json.dumps({"bundle": "bundle"}))
    with pytest.raises(ConfigError, match="is not an app folder; make one with monai-diffae label-app"):
        AppFolder(tmp_path).settings()
