"""The command ``label-app``."""

import json


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
