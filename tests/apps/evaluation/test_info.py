import json
import shutil
from pathlib import Path

import pytest

from monai_diffae.apps.evaluation.info import info
from monai_diffae.data.file_checksums import file_checksum
from monai_diffae.errors import ConfigError


def test_the_properties_of_a_bundle_and_its_decoding_settings(run, tiny_bundle, tmp_path):
    summary = info(tiny_bundle.directory).summary
    assert (summary["steps"], summary["invert_steps"], summary["solver"]) == (3, 4, "adams")
    assert (summary["image_size"], summary["z_channels"], summary["own_code"]) == ([16, 16], 8, [])
    assert list(summary["files"]) == [
        "models/config.json", "configs/train.json", "configs/train_latent.json", "configs/distill.json",
    ]  # fmt: skip
    assert "solver: adams\n" in run("info", tiny_bundle.directory)[1]
    assert json.loads(run("info", tiny_bundle.directory, "--json")[1]) == summary
    with pytest.raises(ConfigError, match=r"there is no models/model\.pt"):
        info(tmp_path)


@pytest.fixture
def stranger(tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    bundle = Path(shutil.copytree(tiny_bundle.directory, tmp_path / "stranger"))
    for name in ("models/config.json", "configs/train.json"):
        file = bundle / name
        config = json.loads(file.read_text())
        config["in_channels"] = f"$open({str(tmp_path / 'proof')!r}, 'w') and 1"
        config["preprocessing"]["transforms"].append({"_target_": "os.system\x1b[2J", "command": "true"})
        file.write_text(json.dumps(config))
    return bundle


def test_a_bundle_of_a_stranger_is_described_without_running_it(stranger, tmp_path, run):
    """R20"""
    code, out, _ = run("info", stranger)
    lines = out.splitlines()
    assert code in (0, None)
    assert [line for line in lines if line.startswith('own code: models/config.json: expression "$open(')]
    assert [line for line in lines if r"target 'os.system\x1b[2J' at 'preprocessing#transforms#" in line]
    assert [line for line in lines if line.startswith("own code: configs/train.json: ")]
    assert f"models/config.json: sha256 {file_checksum(stranger / 'models' / 'config.json')}" in lines
    assert lines[-1] == "nothing was run; if you trust the author of this code, add --trust"
    (stranger / "models" / "model.pt").unlink()  # an untrained one, too
    assert "own code: configs/train.json: expression" in run("info", stranger)[1]
    assert not (tmp_path / "proof").exists()


def test_info_with_trust_shows_the_properties_and_remembers(stranger, tmp_path, run):
    for name in ("models/config.json", "configs/train.json"):
        (stranger / name).write_text(
            (stranger / name)
            .read_text()
            .replace(r"os.system\u001b[2J", "monai.transforms.Identityd")
            .replace('"command": "true"', '"keys": "image"')
        )
    assert "z_channels: 8\n" in run("info", stranger, "--trust")[1]
    assert (tmp_path / "proof").exists()
    assert "z_channels: 8\n" in run("info", stranger)[1]
