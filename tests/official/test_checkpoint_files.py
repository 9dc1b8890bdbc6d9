import importlib
import json
import os
import pickle
import resource
import sys
import types
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from monai_diffae.errors import ConfigError, MachineError, UnsafeInputError
from monai_diffae.official.checkpoint_files import read_safetensors, read_weights

STATE = {"ema_model.a": torch.arange(6.0).reshape(2, 3), "model.a": torch.ones(2, 3), "x_T": torch.zeros(1)}


class AttributeDict(dict):
    """As in Lightning: a dict, pickled by its class."""


class ModelCheckpoint:
    """As in Lightning: its class is a key, and an object of it has a state."""

    def __init__(self):
        self.dirpath = "logs"


class Runs:
    """Runs a command when it is read by Python's own pickle."""

    def __reduce__(self):
        return (os.system, ("touch executed",))


def system(command):
    Path("executed").touch()


class RunsNamed:
    """Calls a function of a name of Lightning's when it is read by Python's own pickle."""

    def __reduce__(self):
        return (system, ("anything",))


@pytest.fixture
def lightning(monkeypatch):
    """Modules of the names of Lightning's, to pickle from; ``forget`` takes them away before anything is read."""
    modules = {
        "pytorch_lightning": {},
        "pytorch_lightning.callbacks.model_checkpoint": {"ModelCheckpoint": ModelCheckpoint},
        "pytorch_lightning.utilities.parsing": {"AttributeDict": AttributeDict},
        "pytorch_lightning.tools": {"system": system},
    }
    for name, content in modules.items():
        module = types.ModuleType(name)
        for key, value in content.items():
            monkeypatch.setattr(value, "__module__", name)
            setattr(module, key, value)
        monkeypatch.setitem(sys.modules, name, module)

    def forget():
        for name in modules:
            del sys.modules[name]

    return types.SimpleNamespace(forget=forget)


def lightning_checkpoint():
    """What Lightning 1.4 writes for the official training."""
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(3))])
    optimizer.param_groups[0]["params"][0].sum().backward()
    optimizer.step()
    return {
        "epoch": 3,
        "global_step": 1000,
        "pytorch-lightning_version": "1.4.5",
        "state_dict": OrderedDict(STATE),
        "callbacks": {ModelCheckpoint: {"monitor": None, "best_model_score": torch.tensor(1.0), "dirpath": "logs"}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [],
        "native_amp_scaling_state": {"scale": 65536.0, "_growth_tracker": 3},
        "hparams_name": "conf",
        "hyper_parameters": AttributeDict(seed=0, net_ch_mult=(1, 2), nested=AttributeDict(a=None)),
        "an_object": ModelCheckpoint(),
    }


def test_a_lightning_checkpoint_gives_its_state_dict_and_imports_nothing(lightning, tmp_path):
    torch.save(lightning_checkpoint(), tmp_path / "last.ckpt")
    lightning.forget()
    with pytest.raises(pickle.UnpicklingError, match=r"Unsupported global: GLOBAL pytorch_lightning"):
        torch.load(tmp_path / "last.ckpt", weights_only=True)  # why the names need a stand-in
    weights = read_weights(tmp_path / "last.ckpt")
    assert weights.keys() == STATE.keys()
    assert all(torch.equal(weights[key], STATE[key]) for key in STATE)
    assert not [name for name in sys.modules if "lightning" in name.removeprefix("lightning_utilities")]
    assert "LightningName" not in str(torch.serialization.get_safe_globals())  # allowed for that moment only


def test_lightning_is_not_imported_where_it_could_be(lightning, tmp_path, monkeypatch):
    torch.save(lightning_checkpoint(), tmp_path / "last.ckpt")
    lightning.forget()
    (tmp_path / "pytorch_lightning").mkdir()
    (tmp_path / "pytorch_lightning" / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert sorted(read_weights(tmp_path / "last.ckpt")) == ["ema_model.a", "model.a", "x_T"]
    assert "pytorch_lightning" not in sys.modules
    with pytest.raises(SystemExit, match="imported"):  # it could be
        importlib.import_module("pytorch_lightning")


def test_nothing_is_done_with_a_function_of_a_lightning_name(lightning, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": STATE, "callbacks": RunsNamed()}, "named.ckpt")
    assert b"pytorch_lightning.tools" in zipfile.ZipFile("named.ckpt").read("named/data.pkl")
    assert read_weights("named.ckpt").keys() == STATE.keys()
    assert not Path("executed").exists()  # although the module is there still
    torch.load("named.ckpt", weights_only=False)
    assert Path("executed").exists()  # so the file is what it should be


@pytest.mark.parametrize("place", ["state_dict", "callbacks"])
def test_code_in_a_file_is_not_run_and_named(lightning, tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    torch.save({**lightning_checkpoint(), place: Runs()}, "bad.ckpt")
    lightning.forget()
    with pytest.raises(
        UnsafeInputError, match=r"^bad\.ckpt: contains (posix|nt)\.system, .* could run code; "
    ) as caught:
        read_weights("bad.ckpt")
    assert "\n" not in str(caught.value)
    assert not Path("executed").exists()


def test_what_only_begins_like_lightning_is_refused(tmp_path, monkeypatch):
    module = types.ModuleType("lightning_rod")
    module.Thing = type("Thing", (), {"__module__": "lightning_rod"})
    monkeypatch.setitem(sys.modules, "lightning_rod", module)
    torch.save({"a": module.Thing()}, tmp_path / "bad.ckpt")
    with pytest.raises(UnsafeInputError, match=r"contains lightning_rod\.Thing"):
        read_weights(tmp_path / "bad.ckpt")


def test_other_objects_are_refused(tmp_path):
    torch.save({"state_dict": STATE, "global_step": np.float64(3)}, tmp_path / "numpy.ckpt")
    with pytest.raises(UnsafeInputError, match=r"numpy\.ckpt: contains numpy\."):
        read_weights(tmp_path / "numpy.ckpt")


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_file_of_before_pytorch_1_6_or_of_another_pickle(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    torch.save(STATE, "old.pt", _use_new_zipfile_serialization=False, pickle_protocol=protocol)
    if protocol == 2:
        assert torch.equal(read_weights("old.pt")["model.a"], STATE["model.a"])
    torch.save(Runs(), "bad.pt", _use_new_zipfile_serialization=False, pickle_protocol=protocol)
    with pytest.raises(
        UnsafeInputError, match=r"bad\.pt: damaged, or not a plain state dict \(loading it could run code\)"
    ):
        read_weights("bad.pt")
    Path("plain.pt").write_bytes(pickle.dumps(Runs(), protocol=protocol))
    with pytest.raises(
        UnsafeInputError, match=r"plain\.pt: damaged, or not a plain state dict \(loading it could run code\)"
    ):
        read_weights("plain.pt")
    assert not Path("executed").exists()


def test_bare_state_dicts_and_other_content(tmp_path):
    for content, keys in (
        (STATE, STATE.keys()),
        ({"a": 1, 2: 3}, set()),
    ):
        torch.save(content, tmp_path / "a.pt")
        assert read_weights(tmp_path / "a.pt").keys() == set(keys)
    for content, what in (
        ([1, 2], "list"),
        (torch.zeros(2), "Tensor"),
        (None, "NoneType"),
        ({"state_dict": [1]}, "list as its state_dict"),
    ):
        torch.save(content, tmp_path / "a.pt")
        with pytest.raises(ConfigError, match=rf"^a\.pt: holds a {what}, not named weights; "):
            read_weights(tmp_path / "a.pt")


@pytest.mark.parametrize("name", ["old.pt", "plain.pt", "script.pt"])
def test_no_warning_of_torchs_shows_where_things_lie(tmp_path, name):
    torch.save(STATE, tmp_path / "old.pt", _use_new_zipfile_serialization=False, pickle_protocol=4)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"a": [1]}, protocol=4))
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(str(tmp_path / "script.pt"))
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with pytest.raises(UnsafeInputError):
            read_weights(tmp_path / name)
    assert shown == []


@pytest.mark.parametrize("keep", [0, 1, 40, 600, -1, -30])
def test_a_truncated_file_is_one_line(tmp_path, keep):
    torch.save({"state_dict": STATE}, tmp_path / "whole.ckpt")
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "whole.ckpt").read_bytes()[:keep])
    with pytest.raises(UnsafeInputError, match=r"^cut\.ckpt: damaged") as caught:
        read_weights(tmp_path / "cut.ckpt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"hello\n", b"\x80\x02}q\x00.", b"PK\x03\x04", bytes(1000)])
def test_what_is_no_checkpoint_is_one_line(tmp_path, content):
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(UnsafeInputError, match=r"^a\.ckpt: damaged"):
        read_weights(tmp_path / "a.ckpt")


def test_a_zip_that_is_none_of_torchs(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as archive:
        archive.writestr("a.txt", "hello")
    with pytest.raises(UnsafeInputError, match=r"^a\.ckpt: damaged"):
        read_weights(tmp_path / "a.ckpt")


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(ConfigError, match=r"^none\.ckpt: there is no such file$"):
        read_weights(tmp_path / "none.ckpt")
    with pytest.raises(ConfigError, match="is a folder; give the file in it"):
        read_weights(tmp_path)
    with pytest.raises(ConfigError, match=r"^\.: is a folder; give the file in it"):
        read_weights("")


@pytest.mark.parametrize("name", ["a.ckpt", "a.safetensors"])
def test_a_file_that_may_not_be_read(tmp_path, monkeypatch, name):
    (tmp_path / name).write_bytes(b"x")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(MachineError, match=rf"^{name}: cannot be read \(Permission denied\)"):
        read_weights(tmp_path / name)


def header(entry):
    text = json.dumps(entry).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        b"\xff" * 64,
        (10**12).to_bytes(8, "little") + b"{}",
        header([1, 2]),
        header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}),  # no bytes follow
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-12, -8]}}) + bytes(16),
        header({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 16]}}) + bytes(16),
        header({"a": {"dtype": "F32", "shape": [-2, -2], "data_offsets": [0, 16]}}) + bytes(16),
        header({"a": {"dtype": "PICKLE", "shape": [4], "data_offsets": [0, 16]}}) + bytes(16),
        header({"a": {"dtype": "F32", "shape": "4", "data_offsets": [0, 16]}}) + bytes(16),
        header({"a": {"dtype": "F32", "shape": [0, 2**62, 8], "data_offsets": [0, 0]}}),
    ],
)
def test_a_lying_safetensors_header_is_refused(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(UnsafeInputError, match=r"a\.safetensors: damaged, or not a \.safetensors file"):
        read_safetensors(path)


def read_last_number(path):
    """The last number of the tensor ``a``, and how many KiB of memory the process needs to read it."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    last = float(read_safetensors(path)[0]["a"][-1])
    return last, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before


def test_a_safetensors_file_stays_on_the_disk_until_it_is_used(in_a_fork, tmp_path):
    size = 256 * 2**20
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write(header({"a": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}))
        file.truncate(file.tell() + size)  # zeros that take no place on the disk
    last, memory = in_a_fork(read_last_number, path)  # whose memory has had no larger peak before
    assert last == 0
    assert memory * 1024 < size / 8


@pytest.mark.parametrize("padding", range(8))
def test_tensors_that_begin_anywhere_in_a_file(tmp_path, padding):
    values = torch.arange(5, dtype=torch.float64)
    entries = {"a": {"dtype": "F64", "shape": [5], "data_offsets": [0, 40]}, "__metadata__": {"pad": "x" * padding}}
    path = tmp_path / "a.safetensors"
    path.write_bytes(header(entries) + values.numpy().tobytes())
    content = path.read_bytes()
    tensors, metadata = read_safetensors(path)
    assert torch.equal(tensors["a"], values)
    assert metadata == {"pad": "x" * padding}
    tensors["a"].zero_()  # a tensor like any other, and the file stays as it is
    assert path.read_bytes() == content
