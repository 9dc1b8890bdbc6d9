"""Whatever private text a bundle holds, and wherever: `push` removes it, or refuses the bundle."""

from __future__ import annotations

import io
import json
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from monai_diffae import load_bundle
from monai_diffae.apps.sharing.push import push
from monai_diffae.errors import ConfigError, DiffAEError, UnsafeInputError

SECRET = "mrdoe"


@pytest.fixture
def bundle(described: Path, tmp_path: Path) -> Path:
    return shutil.copytree(described, tmp_path / "bundle")


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def set_values(name: str, values: dict[str, Any]) -> Callable[[Path], None]:
    """Set values of a JSON file by their ids."""

    def edit(bundle: Path) -> None:
        content = read(bundle / name) if (bundle / name).is_file() else {}
        for id, value in values.items():
            *parents, key = id.split("#")
            place = content
            for parent in parents:
                place = place[int(parent)] if isinstance(place, list) else place.setdefault(parent, {})
            place[key] = value
        (bundle / name).write_text(json.dumps(content))

    return edit


def change_weights(edit: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def change(bundle: Path) -> None:
        path = bundle / "models" / "model.pt"
        weights = torch.load(path, weights_only=True)
        torch.save(edit(weights) or weights, path)

    return change


def add_member(bundle: Path) -> None:
    with zipfile.ZipFile(bundle / "models" / "model.pt", "a") as archive:
        archive.writestr("archive/notes.txt", SECRET)


def add_comment(bundle: Path) -> None:
    with zipfile.ZipFile(bundle / "models" / "model.pt", "a") as archive:
        archive.comment = SECRET.encode()


def unused_text(bundle: Path) -> None:
    """A pickle may have texts that are thrown away when it is read."""
    path = bundle / "models" / "model.pt"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            if name.endswith("data.pkl"):
                text = SECRET.encode()
                content = content[:2] + b"X" + struct.pack("<I", len(text)) + text + b"0" + content[2:]
            archive.writestr(name, content)


def metadata_of_modules(weights: dict[str, torch.Tensor]) -> Any:
    from collections import OrderedDict

    state = OrderedDict(weights)
    state._metadata = {"": {"version": 1, "note": SECRET}}  # type: ignore[attr-defined]
    return state


def part_of_larger_tensor(weights: dict[str, torch.Tensor]) -> None:
    name, weight = next(iter(weights.items()))
    hidden = torch.tensor(list(SECRET.encode() * 4), dtype=torch.uint8).view(weight.dtype)
    whole = torch.cat([weight.flatten(), hidden])
    weights[name] = whole[: weight.numel()].view(weight.shape)


def write_safetensors(path: Path, weights: dict[str, torch.Tensor], metadata: dict[str, str] | None) -> None:
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    content = io.BytesIO()
    for name, weight in weights.items():
        data = weight.contiguous().numpy().tobytes()
        start = content.tell()
        content.write(data)
        header[name] = {"dtype": "F32", "shape": list(weight.shape), "data_offsets": [start, start + len(data)]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content.getvalue())


def safetensors(metadata: dict[str, str] | None, end: bytes = b"") -> Callable[[Path], None]:
    def add(bundle: Path) -> None:
        path = bundle / "models" / "model.safetensors"
        write_safetensors(path, torch.load(bundle / "models" / "model.pt", weights_only=True), metadata)
        path.write_bytes(path.read_bytes() + end)

    return add


def key_twice(bundle: Path) -> None:
    path = bundle / "models" / "config.json"
    path.write_text(path.read_text().replace("{", f'{{"seed": "{SECRET}",', 1))


def contents(path: Path) -> dict[str, bytes]:
    """The files of an archive, and those of archives in it."""
    found = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            found[name] = archive.read(name)
            if name.endswith(".pt"):
                with zipfile.ZipFile(io.BytesIO(found[name])) as weights:
                    found |= {f"{name}/{member}": weights.read(member) for member in weights.namelist()}
    return found


TRAIN, MODEL, METADATA = "configs/train.json", "models/config.json", "configs/metadata.json"
REMOVED: dict[str, Callable[[Path], None]] = {
    "text of a figure": set_values("models/metrics.json", {"note": f"{SECRET} was best", "loss": 0.5}),
    "name of a figure": set_values("models/metrics.json", {f"probe_{SECRET}": 0.5}),
    "list of figures": set_values("models/metrics.json", {"loss": [SECRET, 1]}),
    "provenance": set_values("models/provenance.json", {"source": f"/home/{SECRET}/last.ckpt"}),
    "meta": set_values(MODEL, {"_meta_#note": f"for {SECRET}"}),
    "name in meta": set_values(MODEL, {f"_meta_#{SECRET}": 1}),
    "version": set_values(MODEL, {"_meta_#monai_diffae": SECRET}),
    "mapping of cases": set_values(TRAIN, {"train#dataset#data": {SECRET: f"scans/{SECRET}.nii"}}),
    "mapping with known keys": set_values(TRAIN, {"train#dataset#data": {"data": {"image": f"{SECRET}.nii"}}}),
    "list of cases": set_values(TRAIN, {"train#dataset#data": [{"image": f"{SECRET}.nii"}] * 3}),
    "relative path": set_values(TRAIN, {"dataset_dir": f"data/{SECRET}/x.csv"}),
    "path with backslashes": set_values(TRAIN, {"dataset_dir": f"..\\{SECRET}"}),
    "one word as a path": set_values(TRAIN, {"dataset_dir": SECRET, "output_dir": SECRET, "start_from": SECRET}),
    "name of a run": set_values(TRAIN, {"run_name": SECRET, "experiment_name": SECRET, "registered_model": SECRET}),
    "address": set_values(TRAIN, {"tracking_uri": f"https://{SECRET}:token@example.org"}),
    "tags": set_values(TRAIN, {"train#handlers#6#tags": {"author": SECRET}}),
    "description of a component": set_values(TRAIN, {"network_def#_desc_": f"{SECRET}'s network"}),
    "names of columns": set_values(MODEL, {"columns": {"image": f"scan of {SECRET}", SECRET: "patient"}}),
    "labels": set_values(TRAIN, {"probe_targets": [SECRET]}),
    "own expression": set_values(TRAIN, {"max_epochs": f"$len('{SECRET}')"}),
    "import": set_values(MODEL, {"imports": [f"$import {SECRET}"]}),
    "own key": set_values(TRAIN, {SECRET: 1, "mine": {"note": SECRET}}),
    "own handler": set_values(TRAIN, {"train#handlers": [{"_target_": f"{SECRET}.Handler", "path": SECRET}]}),
    "pattern": set_values(MODEL, {"patient_pattern": f"({SECRET}.)"}),
    "reference": set_values(TRAIN, {"run_name": f"@{SECRET}"}),
    "other runs": set_values("configs/evaluate.json", {"cohort": f"{SECRET}.csv", "overrides": {SECRET: 1}}),
    "several devices": set_values("configs/multi_gpu_train.json", {"device": f"$'{SECRET}'", "rank": SECRET}),
    "checksum": set_values(MODEL, {"_meta_#data_fingerprint": SECRET * 13}),
    "unknown key of metadata": set_values(METADATA, {"patients": [SECRET]}),
    "key that stands twice": key_twice,
    "record of networks": set_values("models/networks.json", {"networks": {f"{SECRET}.pt2": {}}, "note": SECRET}),
    "folder of the bundle": lambda bundle: None,
}  # fmt: skip
REFUSED: dict[str, Callable[[Path], None]] = {
    "argument of the model": set_values(MODEL, {"network_def#unet#note": f"{SECRET} has a tumour"}),
    "path in the model": set_values(MODEL, {"preprocessing#transforms#0#meta": f"{SECRET}/scan.nii"}),
    "path in metadata": set_values(METADATA, {"data_source": f"scans in data/{SECRET}.csv"}),
    "windows path in metadata": set_values(METADATA, {"description": f"from C:\\{SECRET}"}),
    "path as a key of metadata": set_values(METADATA, {"changelog": {f"/home/{SECRET}": "x"}}),
    "file in the weights": add_member,
    "comment of the weights": add_comment,
    "text that loading ignores": unused_text,
    "metadata of modules": change_weights(metadata_of_modules),
    "part of a larger tensor": change_weights(part_of_larger_tensor),
    "name of a tensor": change_weights(lambda weights: weights.update({SECRET: torch.zeros(1)})),
    "metadata of safetensors": safetensors({"format": "pt", "author": SECRET}),
    "bytes after safetensors": safetensors(None, SECRET.encode()),
}  # fmt: skip


@pytest.mark.parametrize("hide", REMOVED.values(), ids=list(REMOVED))
def test_a_private_text_is_removed(bundle: Path, tmp_path: Path, hide: Callable[[Path], None]) -> None:
    hide(bundle)
    push(bundle, str(tmp_path / "sent.zip"), yes=True)
    sent = contents(tmp_path / "sent.zip")
    assert [name for name, content in sent.items() if SECRET.encode() in content or SECRET in name] == []
    shutil.unpack_archive(tmp_path / "sent.zip", tmp_path / "sent")
    load_bundle(tmp_path / "sent", "cpu")


@pytest.mark.parametrize("hide", REFUSED.values(), ids=list(REFUSED))
def test_a_private_text_that_cannot_be_removed_is_refused(
    bundle: Path, tmp_path: Path, hide: Callable[[Path], None]
) -> None:
    hide(bundle)
    with pytest.raises(DiffAEError) as caught:
        push(bundle, str(tmp_path / "sent.zip"), yes=True)
    assert len(str(caught.value)) < 250
    assert not (tmp_path / "sent.zip").exists()


def test_the_list_shows_what_was_removed(bundle: Path, tmp_path: Path, capsys: Any) -> None:
    set_values(TRAIN, {"dataset_dir": "scans", "mine": 1, "mlflow": False})(bundle)
    set_values("models/metrics.json", {"note": "text"})(bundle)
    push(bundle, str(tmp_path / "sent.zip"), yes=True)
    lines = capsys.readouterr().err.splitlines()
    assert "removed or replaced in models/metrics.json: note" in lines
    assert "removed or replaced in configs/train.json: dataset_dir, mine" in lines
    train = json.loads(contents(tmp_path / "sent.zip")["configs/train.json"])
    assert (train["dataset_dir"], train["mlflow"], "mine" in train) == ("???", False, False)


def test_numbers_and_known_words_stay(bundle: Path, tmp_path: Path) -> None:
    values = {
        "learning_rate": 0.5, "slice_axis": "coronal", "precision": "bf16", "augmentation#transforms#1#mode": "nearest",
        "train#trainer#max_epochs": "@max_epochs", "optimizer#_target_": "torch.optim.SGD",
    }  # fmt: skip
    set_values(TRAIN, values)(bundle)
    set_values("models/provenance.json", {"monai_diffae": "0.1.0", "file_sha256": "0" * 64})(bundle)
    push(bundle, str(tmp_path / "sent.zip"), yes=True)
    sent = contents(tmp_path / "sent.zip")
    train = json.loads(sent["configs/train.json"])
    assert train["learning_rate"] == 0.5
    assert train["precision"] == "bf16"
    assert train["augmentation"]["transforms"][1]["mode"] == "nearest"
    assert train["optimizer"]["_target_"] == "torch.optim.SGD"
    assert json.loads(sent["models/provenance.json"]) == {"monai_diffae": "0.1.0", "file_sha256": "0" * 64}
    assert sent["models/config.json"] == (bundle / "models" / "config.json").read_bytes()


def test_the_network_is_built_identically(bundle: Path, tmp_path: Path) -> None:
    set_values(TRAIN, {"run_name": SECRET})(bundle)
    set_values(MODEL, {"patient_pattern": SECRET, "_meta_#note": SECRET})(bundle)
    push(bundle, str(tmp_path / "sent.zip"), yes=True)
    shutil.unpack_archive(tmp_path / "sent.zip", tmp_path / "sent")
    ours, theirs = load_bundle(bundle, "cpu"), load_bundle(tmp_path / "sent", "cpu")
    assert str(ours.network) == str(theirs.network)
    weights = theirs.network.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in ours.network.state_dict().items())
    assert ours.preprocessing_sha256 == theirs.preprocessing_sha256
    scan = torch.rand(ours.image_shape)[None]
    assert torch.equal(ours.network.encode(scan), theirs.network.encode(scan))


def test_names_of_images_are_sent_and_shown(bundle: Path, tmp_path: Path, capsys: Any) -> None:
    for name in (TRAIN, MODEL):
        set_values(name, {"image_keys": ["flair"], "encoder_key": "flair"})(bundle)
    push(bundle, str(tmp_path / "sent.zip"), yes=True)
    assert json.loads(contents(tmp_path / "sent.zip")[MODEL])["image_keys"] == ["flair"]
    assert "words of your own in models/config.json, sent as the model needs them: 'flair'" in capsys.readouterr().err


def test_a_path_that_the_model_needs_is_refused(bundle: Path, tmp_path: Path) -> None:
    set_values(MODEL, {"preprocessing#transforms#0#nonfinite": "../scans"})(bundle)
    with pytest.raises(
        ConfigError, match=r"models/config.json: the model needs preprocessing#transforms#0#nonfinite, b"
    ):
        push(bundle, str(tmp_path / "sent.zip"), yes=True)


def test_weights_of_another_network_are_refused(bundle: Path, tmp_path: Path) -> None:
    set_values(MODEL, {"z_channels": 12})(bundle)
    with pytest.raises(ConfigError, match=r"model.pt: \d+ of \d+ weights do not fit the configuration's network"):
        push(bundle, str(tmp_path / "sent.zip"), yes=True)


def test_own_classes_need_trust(bundle: Path, tmp_path: Path) -> None:
    set_values(MODEL, {"network_def#unet#_target_": "my_lab.UNet"})(bundle)
    with pytest.raises(UnsafeInputError, match=r"bundle: config.json is not trusted to use target 'my_lab.UNet'"):
        push(bundle, str(tmp_path / "sent.zip"), yes=True)


def test_safetensors_are_sent_if_they_are_the_same_weights(bundle: Path, tmp_path: Path) -> None:
    safetensors({"format": "pt"})(bundle)
    push(bundle, str(tmp_path / "sent.zip"), yes=True)
    path = bundle / "models" / "model.safetensors"
    assert contents(tmp_path / "sent.zip")["models/model.safetensors"] == path.read_bytes()
    write_safetensors(path, {name: w + 1 for name, w in torch.load(bundle / "models" / "model.pt").items()}, None)
    with pytest.raises(ConfigError, match=r"model.safetensors: holds other weights than the .pt file beside it"):
        push(bundle, str(tmp_path / "other.zip"), yes=True)
