import json
import pickle
import sys
import types
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from monai_diffae.errors import ConfigError, UnsafeInputError
from monai_diffae.official.checkpoint_files import read_checkpoint, read_safetensors, read_weights

STATE = {"ema_model.a": torch.arange(6.0).reshape(2, 3), "model.a": torch.ones(2, 3), "x_T": torch.zeros(1)}


class AttributeDict(dict):
    """As in Lightning: a dict, pickled by its class."""


class ModelCheckpoint(types.SimpleNamespace):
    """As in Lightning: its class is a key, and an object of it has a state."""


def save_lightning_checkpoint(file):
    """What Lightning 1.4 writes for the official training, from modules of its names that exist while it is saved."""
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(3))])
    optimizer.param_groups[0]["params"][0].sum().backward()
    optimizer.step()
    content = {
        "epoch": 3,
        "state_dict": OrderedDict(STATE),
        "callbacks": {ModelCheckpoint: {"monitor": None, "best_model_score": torch.tensor(1.0), "dirpath": "logs"}},
        "optimizer_states": [optimizer.state_dict()],
        "native_amp_scaling_state": {"scale": 65536.0, "_growth_tracker": 3},
        "hyper_parameters": AttributeDict(seed=0, net_ch_mult=(1, 2), nested=AttributeDict(a=None)),
        "an_object": ModelCheckpoint(dirpath="logs"),
    }
    places = {ModelCheckpoint: "callbacks.model_checkpoint", AttributeDict: "utilities.parsing"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pytorch_lightning", types.SimpleNamespace())
        for kind, place in places.items():
            kind.__module__ = f"pytorch_lightning.{place}"
            patch.setitem(sys.modules, kind.__module__, types.SimpleNamespace(**{kind.__name__: kind}))
        torch.save(content, file)


def test_a_lightning_checkpoint_gives_its_state_dict_and_imports_nothing(tmp_path):
    save_lightning_checkpoint(tmp_path / "stored.ckpt")
    with (  # packed again, compressed
        zipfile.ZipFile(tmp_path / "stored.ckpt") as stored,
        zipfile.ZipFile(tmp_path / "last.ckpt", "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name in stored.namelist():
            archive.writestr(name, stored.read(name))
    with pytest.raises(pickle.UnpicklingError, match=r"Unsupported global: GLOBAL pytorch_lightning"):
        torch.load(tmp_path / "last.ckpt", weights_only=True)  # why the names need a stand-in
    _, settings = read_checkpoint(tmp_path / "stored.ckpt")
    weights, again = read_checkpoint(tmp_path / "last.ckpt")
    assert settings == again == {"seed": 0, "net_ch_mult": (1, 2), "nested": {"a": None}}
    assert weights.keys() == STATE.keys()
    assert all(torch.equal(weights[key], STATE[key]) for key in STATE)
    assert not [name for name in sys.modules if "lightning" in name.removeprefix("lightning_utilities")]
    assert "LightningName" not in str(torch.serialization.get_safe_globals())  # allowed for that moment only


def test_other_objects_and_what_only_begins_like_lightning_are_refused(tmp_path, monkeypatch):
    module = types.ModuleType("lightning_rod")
    module.Thing = type("Thing", (), {"__module__": "lightning_rod"})
    monkeypatch.setitem(sys.modules, "lightning_rod", module)
    for thing, name in ((module.Thing(), r"lightning_rod\.Thing"), (np.float64(3), r"numpy\.")):
        torch.save({"state_dict": STATE, "a": thing}, tmp_path / "bad.ckpt")
        with pytest.raises(UnsafeInputError, match=rf"bad\.ckpt: contains {name}"):
            read_weights(tmp_path / "bad.ckpt")


@pytest.mark.filterwarnings("error")  # torch's would show where things lie
def test_bare_state_dicts_and_other_content(tmp_path):
    torch.save(STATE, tmp_path / "old.pt", _use_new_zipfile_serialization=False)  # before PyTorch 1.6
    assert torch.equal(read_weights(tmp_path / "old.pt")["model.a"], STATE["model.a"])
    for content, keys in ((STATE, STATE.keys()), ({"a": 1, 2: 3}, set())):
        torch.save(content, tmp_path / "a.pt")
        assert read_weights(tmp_path / "a.pt").keys() == set(keys)
    for content, what in (([1, 2], "list"), (None, "NoneType"), ({"state_dict": [1]}, "list as its state_dict")):
        torch.save(content, tmp_path / "a.pt")
        with pytest.raises(ConfigError, match=rf"^a\.pt: holds a {what}, not named weights; "):
            read_weights(tmp_path / "a.pt")


def test_a_truncated_file_or_another_one_is_one_line(tmp_path):
    torch.save({"state_dict": STATE}, tmp_path / "whole.ckpt")
    whole = (tmp_path / "whole.ckpt").read_bytes()
    for content in (b"", *(whole[:n] for n in (40, 600, -1)), b"hello\n", b"\x80\x02}q\x00.", b"PK\3\4", bytes(1000)):
        (tmp_path / "cut.ckpt").write_bytes(content)
        with pytest.raises(UnsafeInputError, match=r"^cut\.ckpt: damaged") as caught:
            read_weights(tmp_path / "cut.ckpt")
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"^none\.ckpt: there is no such file$"):
        read_weights(tmp_path / "none.ckpt")
    with pytest.raises(ConfigError, match="is a folder; give the file in it"):
        read_weights(tmp_path)


def test_safetensors_are_read_and_a_lying_header_is_refused(tmp_path):
    def write(entry, values):
        text = json.dumps(entry).encode()
        (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + values)
        return read_safetensors(tmp_path / "a.safetensors")

    values = torch.arange(5, dtype=torch.float64)
    entry = {"dtype": "F64", "shape": [5], "data_offsets": [0, 40]}
    tensors, metadata = write({"a": entry, "__metadata__": {"pad": "xxx"}}, values.numpy().tobytes())
    assert torch.equal(tensors["a"], values)
    assert metadata == {"pad": "xxx"}
    content = (tmp_path / "a.safetensors").read_bytes()
    tensors["a"].zero_()  # a tensor like any other, and the file stays as it is
    assert (tmp_path / "a.safetensors").read_bytes() == content
    for wrong in ({"shape": [6]}, {"data_offsets": [-12, 28]}, {"shape": [0, 2**62, 8], "data_offsets": [0, 0]}):
        with pytest.raises(UnsafeInputError, match=r"a\.safetensors: damaged, or not a \.safetensors file"):
            write({"a": {**entry, **wrong}}, values.numpy().tobytes())
