"""The commands ``label-app`` and ``label-server``: what they make and refuse. test_end_to_end.py runs the server."""

import json
import os
import shutil
import sys

import pytest

from monai_diffae import label_app, label_server
from monai_diffae.bundle import checksum, init_bundle
from monai_diffae.errors import ConfigError, MachineError
from monai_diffae.label.label_app import AppFolder


def test_an_app_has_its_own_copy_of_the_bundle_and_can_be_moved(run, tiny_bundle, tmp_path):
    app = tmp_path / "app"
    code, printed, _ = run("label-app", app, "--bundle", tiny_bundle.directory)
    assert code == 0
    assert f"monai-diffae label-server {app} STUDIES" in printed
    assert "--calibrate-with" not in printed
    app.rename(tmp_path / "elsewhere")
    folder = AppFolder(tmp_path / "elsewhere")
    assert folder.owns_its_bundle
    assert folder.bundle.resolve().is_relative_to(folder.path.resolve())
    assert checksum(folder.bundle) == checksum(tiny_bundle.directory)
    assert (folder.bundle / "configs" / "train.json").is_file()  # from which training continues
    assert not (folder.bundle / "cache").exists()
    assert "from monai_diffae.label import DiffAEApp" in (folder.path / "main.py").read_text()


def test_an_app_can_refer_to_a_bundle_and_needs_a_calibrated_one(run, tiny_bundle, tmp_path):
    bundle = shutil.copytree(tiny_bundle.directory, tmp_path / "bundle", ignore=shutil.ignore_patterns("cache"))
    code, printed, _ = run("label-app", tmp_path / "app", "--bundle", bundle, "--refer", "--json")
    assert (code, json.loads(printed)) == (0, {"path": str(tmp_path / "app")})
    folder = AppFolder(tmp_path / "app")
    assert (folder.bundle, folder.owns_its_bundle, (folder.path / "bundle").exists()) == (bundle, False, False)
    (bundle / "models" / "anomaly.safetensors").unlink()
    code, printed, _ = run("label-app", tmp_path / "other", "--bundle", bundle)
    assert code == 0
    assert f"run monai-diffae anomaly {tmp_path / 'other' / 'bundle'} SCANS OUT --calibrate-with" in printed


def test_nothing_is_overwritten_and_nothing_is_left(run, tiny_bundle, tmp_path):
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "notes.txt").write_text("mine")
    code, _, error = run("label-app", tmp_path / "app", "--bundle", tiny_bundle.directory)
    assert (code, "the folder is not empty" in error) == (2, True)
    init_bundle(tmp_path / "untrained", "diffae_2d")
    with pytest.raises(ConfigError, match=r"there is no models/model\.safetensors"):
        label_app(tmp_path / "new", bundle=tmp_path / "untrained")
    assert sorted(os.listdir(tmp_path)) == ["app", "untrained"]
    assert os.listdir(tmp_path / "app") == ["notes.txt"]


def test_a_server_needs_an_app_studies_a_port_and_monai_label(tiny_bundle, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="is not an app folder, .*; make one with monai-diffae label-app"):
        label_server(tmp_path, str(tmp_path))
    app = label_app(tmp_path / "app", bundle=tiny_bundle.directory, refer=True).folder
    with pytest.raises(ConfigError, match="studies: scans is not a folder"):
        label_server(app, str(tmp_path / "scans"))
    assert not (tmp_path / "scans").exists()
    settings = app / "settings.json"
    content = settings.read_text()
    settings.write_text('{"device": "cpu"}')
    with pytest.raises(ConfigError, match="whose settings.json names a bundle"):
        label_server(app, str(tmp_path))
    settings.write_text(content)
    for port in (0, "x"):
        with pytest.raises(ConfigError, match=r"^port: "):
            label_server(app, str(tmp_path), port=port)
    monkeypatch.setitem(sys.modules, "monailabel", None)
    monkeypatch.setattr("monai_diffae.errors.find_spec", lambda name: None)
    with pytest.raises(MachineError, match=r"pip install 'monai-diffae\[label\]'"):
        label_server(app, str(tmp_path))
