"""The command ``label-app``."""

import json
import shutil


def test_the_command_makes_an_app_and_says_how_to_start_the_server(run, tiny_bundle, tmp_path):
    code, printed, _ = run("label-app", tmp_path / "app", "--bundle", tiny_bundle.directory)
    assert code == 0
    assert f"monai-diffae label-server {tmp_path / 'app'} STUDIES" in printed
    assert json.loads((tmp_path / "app" / "settings.json").read_text()) == {"bundle": "bundle"}
    code, _, error = run("label-app", tmp_path / "app", "--bundle", tiny_bundle.directory)
    assert code == 2
    assert "the folder is not empty" in error


def test_the_command_can_refer_to_the_bundle(run, tiny_bundle, tmp_path):
    code, printed, _ = run("label-app", tmp_path / "app", "--bundle", tiny_bundle.directory, "--refer", "--json")
    assert (code, json.loads(printed)) == (0, {"folder": str(tmp_path / "app")})
    assert json.loads((tmp_path / "app" / "settings.json").read_text()) == {"bundle": str(tiny_bundle.directory)}


def test_the_command_says_how_to_calibrate_a_bundle_that_is_not(run, tiny_bundle, tmp_path):
    _, printed, _ = run("label-app", tmp_path / "first", "--bundle", tiny_bundle.directory)
    assert "calibrate" not in printed
    bundle = shutil.copytree(tiny_bundle.directory, tmp_path / "bundle", ignore=shutil.ignore_patterns("cache"))
    (bundle / "models" / "anomaly.pt").unlink()
    code, printed, _ = run("label-app", tmp_path / "app", "--bundle", bundle)
    assert code == 0
    assert f"run monai-diffae calibrate {tmp_path / 'app' / 'bundle'} COHORT" in printed
    _, printed, _ = run("label-app", tmp_path / "other", "--bundle", bundle, "--refer")
    assert f"run monai-diffae calibrate {bundle} COHORT" in printed
