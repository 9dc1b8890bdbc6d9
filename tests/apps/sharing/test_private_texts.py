"""Whatever private text a bundle holds, and wherever: `push` removes it, or refuses the bundle."""

import io
import json
import shutil
import struct
import zipfile

import pytest
import torch

from monai_diffae import load_bundle
from monai_diffae.apps.sharing.push import push
from monai_diffae.errors import ConfigError, DiffAEError

SECRET = "mrdoe"
TRAIN, MODEL, METADATA = "configs/train.json", "models/config.json", "configs/metadata.json"


def set_values(bundle, name, values):
    """Set values of a JSON file by their ids."""
    content = json.loads((bundle / name).read_text()) if (bundle / name).is_file() else {}
    for id, value in values.items():
        *parents, key = id.split("#")
        place = content
        for parent in parents:
            place = place[int(parent)] if isinstance(place, list) else place.setdefault(parent, {})
        place[key] = value
    (bundle / name).write_text(json.dumps(content))


def send(bundle, path):
    """Push to an archive; its files, and those of archives in it."""
    push(bundle, str(path), yes=True)
    found = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            found[name] = archive.read(name)
            if name.endswith(".pt"):
                with zipfile.ZipFile(io.BytesIO(found[name])) as weights:
                    found |= {f"{name}/{member}": weights.read(member) for member in weights.namelist()}
    return found


REMOVED = {
    "models/metrics.json": {"note": f"{SECRET} was best", f"probe_{SECRET}": 0.5, "loss": [SECRET, 1]},
    "models/provenance.json": {"source": f"/home/{SECRET}/last.ckpt"},
    "models/networks.json": {"networks": {f"{SECRET}.pt2": {}}, "note": SECRET},
    METADATA: {"patients": [SECRET]},
    MODEL: {
        "_meta_#note": f"for {SECRET}", f"_meta_#{SECRET}": 1, "_meta_#monai_diffae": SECRET,
        "_meta_#data_fingerprint": SECRET * 13, "columns": {"image": f"scan of {SECRET}", SECRET: "patient"},
        "imports": [f"$import {SECRET}"], "patient_pattern": f"({SECRET}.)",
    },
    TRAIN: {
        "train#dataset#data": {SECRET: f"scans/{SECRET}.nii", "data": [{"image": f"{SECRET}.nii"}]},
        "dataset_dir": f"data/{SECRET}/x.csv", "output_dir": f"..\\{SECRET}", "start_from": SECRET,
        "run_name": f"@{SECRET}", "experiment_name": SECRET, "tracking_uri": f"https://{SECRET}:token@example.org",
        "train#handlers#6#tags": {"author": SECRET}, "network_def#_desc_": f"{SECRET}'s network",
        "probe_targets": [SECRET], "max_epochs": f"$len('{SECRET}')", SECRET: 1, "mine": {"note": SECRET},
        "validate#handlers": [{"_target_": f"{SECRET}.Handler", "path": SECRET}],
    },
    "configs/evaluate.json": {"cohort": f"{SECRET}.csv", "overrides": {SECRET: 1}},
    "configs/multi_gpu_train.json": {"device": f"$'{SECRET}'", "rank": SECRET},
}  # fmt: skip


def test_private_texts_are_removed_and_the_network_stays(bundle, tmp_path, capsys):
    kept = {
        "learning_rate": 0.5, "precision": "bf16", "augmentation#transforms#1#mode": "nearest",
        "train#trainer#max_epochs": "@max_epochs", "optimizer#_target_": "torch.optim.SGD",
    }  # fmt: skip
    set_values(bundle, TRAIN, kept)
    for name, values in REMOVED.items():
        set_values(bundle, name, values)
    path = bundle / "models" / "config.json"
    path.write_text(path.read_text().replace("{", f'{{"seed": "{SECRET}",', 1))  # a key that is there twice
    sent = send(bundle, tmp_path / "sent.zip")
    assert [name for name, content in sent.items() if SECRET.encode() in content or SECRET in name] == []
    train = json.loads(sent[TRAIN])
    assert train["dataset_dir"] == "???"
    assert [train[key] for key in ("learning_rate", "precision")] == [0.5, "bf16"]
    assert train["augmentation"]["transforms"][1]["mode"] == "nearest"
    assert train["optimizer"]["_target_"] == "torch.optim.SGD"
    assert "removed or replaced in models/provenance.json: source" in capsys.readouterr().err.splitlines()
    # others build the same network, and it computes the same
    shutil.unpack_archive(tmp_path / "sent.zip", tmp_path / "sent")
    set_values(bundle, MODEL, {"imports": []})
    ours, theirs = load_bundle(bundle, "cpu"), load_bundle(tmp_path / "sent", "cpu")
    assert str(ours.network) == str(theirs.network)
    assert ours.preprocessing_sha256 == theirs.preprocessing_sha256
    scan = torch.rand(ours.image_shape)[None]
    assert torch.equal(ours.network.encode(scan), theirs.network.encode(scan))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        (MODEL, {"network_def#unet#note": f"{SECRET} has a tumour"}),
        (MODEL, {"preprocessing#transforms#0#nonfinite": f"../{SECRET}/scan.nii"}),
        (METADATA, {"data_source": f"scans in data/{SECRET}.csv"}),
        (METADATA, {"changelog": {f"/home/{SECRET}": "x"}}),
    ],
)
def test_a_private_text_that_cannot_be_removed_is_refused(bundle, tmp_path, name, values):
    set_values(bundle, name, values)
    with pytest.raises(DiffAEError) as caught:
        send(bundle, tmp_path / "sent.zip")
    assert len(str(caught.value)) < 250
    assert not (tmp_path / "sent.zip").exists()


def add_member(bundle):
    with zipfile.ZipFile(bundle / "models" / "model.pt", "a") as archive:
        archive.writestr("archive/notes.txt", SECRET)


def part_of_a_larger_tensor(bundle):
    path = bundle / "models" / "model.pt"
    weights = torch.load(path, weights_only=True)
    name, weight = next(iter(weights.items()))
    hidden = torch.tensor(list(SECRET.encode() * 4), dtype=torch.uint8).view(weight.dtype)
    weights[name] = torch.cat([weight.flatten(), hidden])[: weight.numel()].view(weight.shape)
    torch.save(weights, path)


def safetensors(bundle, metadata=None, change=0.0):
    """Write the weights as safetensors, too."""
    header, content = ({"__metadata__": metadata} if metadata else {}), io.BytesIO()
    for name, weight in torch.load(bundle / "models" / "model.pt", weights_only=True).items():
        start = content.tell()
        content.write((weight + change).contiguous().numpy().tobytes())
        header[name] = {"dtype": "F32", "shape": list(weight.shape), "data_offsets": [start, content.tell()]}
    text = json.dumps(header).encode()
    path = bundle / "models" / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + content.getvalue())
    return path


def bytes_after_safetensors(bundle):
    with safetensors(bundle).open("ab") as stream:
        stream.write(SECRET.encode())


@pytest.mark.parametrize("hide", [add_member, part_of_a_larger_tensor, bytes_after_safetensors])
def test_weights_that_hold_a_private_text_are_refused(bundle, tmp_path, hide):
    hide(bundle)
    with pytest.raises(DiffAEError) as caught:
        send(bundle, tmp_path / "sent.zip")
    assert len(str(caught.value)) < 250
    assert not (tmp_path / "sent.zip").exists()


def test_safetensors_are_sent_if_they_are_the_same_weights(bundle, tmp_path):
    path = safetensors(bundle, {"format": "pt"})
    assert send(bundle, tmp_path / "sent.zip")["models/model.safetensors"] == path.read_bytes()
    safetensors(bundle, change=1.0)
    with pytest.raises(ConfigError, match=r"model.safetensors: holds other weights than the .pt file beside it"):
        send(bundle, tmp_path / "other.zip")


def test_names_of_images_are_sent_and_shown(bundle, tmp_path, capsys):
    for name in (TRAIN, MODEL):
        set_values(bundle, name, {"image_keys": ["flair"], "encoder_key": "flair"})
    assert json.loads(send(bundle, tmp_path / "sent.zip")[MODEL])["image_keys"] == ["flair"]
    assert "words of your own in models/config.json, sent as the model needs them: 'flair'" in capsys.readouterr().err
