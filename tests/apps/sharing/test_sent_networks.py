"""Networks that `export` wrote into the bundle are sent if they have its weights and name no folder of this machine."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from monai_diffae import export
from monai_diffae.apps.sharing.pull import pull
from monai_diffae.apps.sharing.push import push
from monai_diffae.bundle.checksums import checksum
from monai_diffae.data.file_checksums import file_checksum
from monai_diffae.errors import ConfigError


def add_network(bundle: Path, content: bytes = b"graph", **record: Any) -> Path:
    path = bundle / "models" / "encoder.pt2"
    path.write_bytes(content)
    networks = {
        "encoder.pt2": {"sha256": file_checksum(path), "bytes": 5, "inputs": {"image": ["batch", 1, "8*height"]}}
    }
    made_from = {"model": checksum(bundle), "format": "pt2"}
    content = {"networks": networks, "made_from": made_from, "mine": "mrdoe", **record}
    (bundle / "models" / "networks.json").write_text(json.dumps(content))
    return path


@pytest.fixture
def bundle(described: Path, tmp_path: Path) -> Path:
    return shutil.copytree(described, tmp_path / "bundle")


def test_a_network_of_these_weights_is_sent_and_pulled(bundle: Path, tmp_path: Path) -> None:
    path = add_network(bundle)
    result = push(bundle, str(tmp_path / "sent.zip"), yes=True)
    assert result.sent["models/encoder.pt2"] == 5
    pull(str(tmp_path / "sent.zip"), tmp_path / "copy")
    assert (tmp_path / "copy" / "models" / "encoder.pt2").read_bytes() == path.read_bytes()
    record = json.loads((tmp_path / "copy" / "models" / "networks.json").read_text())
    assert record["networks"]["encoder.pt2"]["sha256"] == file_checksum(path)
    assert record["networks"]["encoder.pt2"]["inputs"] == {"image": ["batch", 1, "8*height"]}
    assert record["made_from"]["model"] == checksum(bundle)
    assert "mine" not in record


def test_a_real_export_is_sent_with_its_whole_record(bundle: Path, tmp_path: Path) -> None:
    export(bundle, bundle / "models", format="ts")
    push(bundle, str(tmp_path / "sent.zip"), yes=True)
    with zipfile.ZipFile(tmp_path / "sent.zip") as archive:
        for name in ("models/encoder.ts", "models/denoiser.ts"):
            assert archive.read(name) == (bundle / name).read_bytes()
        record = json.loads(archive.read("models/networks.json"))
    assert record == json.loads((bundle / "models" / "networks.json").read_text())


def test_a_network_of_other_weights_is_refused(bundle: Path, tmp_path: Path) -> None:
    add_network(bundle, made_from={"model": "0" * 64})
    with pytest.raises(ConfigError, match=r"encoder.pt2: is a network of other weights than models/model.pt; exp"):
        push(bundle, str(tmp_path / "sent.zip"), yes=True)


def test_a_network_without_record_stays(bundle: Path, tmp_path: Path, capsys: Any) -> None:
    add_network(bundle).write_bytes(b"another")
    (bundle / "models" / "denoiser.onnx").touch()
    result = push(bundle, str(tmp_path / "sent.zip"), yes=True)
    assert not result.sent.keys() & {"models/encoder.pt2", "models/denoiser.onnx", "models/networks.json"}
    assert "not sent: " in capsys.readouterr().err


@pytest.mark.parametrize("is_archive", [False, True])
def test_a_network_that_names_folders_of_this_machine_is_refused(
    bundle: Path, tmp_path: Path, is_archive: bool
) -> None:
    content = b'File "/home/mrdoe/venv/lib/python3.11/site-packages/monai/networks/nets/unet.py", line 3'
    if is_archive:
        with zipfile.ZipFile(tmp_path / "graph.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("encoder/models/model.json", content)
        content = (tmp_path / "graph.zip").read_bytes()
    add_network(bundle, content)
    with pytest.raises(ConfigError, match=r"encoder.pt2: names folders of the machine on which it was exported"):
        push(bundle, str(tmp_path / "sent.zip"), yes=True)
