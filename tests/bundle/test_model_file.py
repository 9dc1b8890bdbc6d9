"""A model's file: what is written is read again; a damaged, hostile or wrong file is one line, and runs nothing."""

import contextlib
import json
import os
from copy import deepcopy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from complaints import complaint, write_unchecked
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_bundles import rewrite, weights
from torch import nn

from monai_diffae.bundle import load_bundle, load_first_stage
from monai_diffae.bundle.model_file import read_description, read_model, write_for_monai, write_model
from monai_diffae.errors import DiffAEError

DESCRIPTION = {"net": {"_target_": "torch.nn.Linear", "in_features": "@size"}, "size": 2, "rate": 1e-3, "none": None}
TENSORS = {"a": torch.tensor([1.5, -2.0]), "b": torch.tensor([True]), "c": torch.ones(2, 3, dtype=torch.bfloat16).T}
NEVER, UNTRUSTED = (
    "which a model file never holds; nothing was run. Do not use it",
    "is not trusted to use the target '",
)


@pytest.fixture
def file(tmp_path):
    return write_model(tmp_path / "model.safetensors", "autoencoder", TENSORS, DESCRIPTION)


def with_header(content, key, **values):
    """The content of a file with other values in its header: of a tensor, or of our entry in the metadata."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    if key == "__metadata__":
        entry = json.loads(header[key]["monai_diffae"]) | values
        header[key] = {"monai_diffae": json.dumps(entry)} if values else {}
    else:
        header[key] |= values
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[start:]


def test_what_is_written_is_read_again_and_the_same_model_gives_the_same_bytes(file, tmp_path):
    model = read_model(file, "latent", "autoencoder")
    assert read_description(file) == {"kind": model.kind, **model.description} == {"kind": "autoencoder", **DESCRIPTION}
    assert model.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(model.tensors[name], value) for name, value in TENSORS.items())
    again = write_model(tmp_path / "again", model.kind, dict(reversed(model.tensors.items())), model.description)
    assert again.read_bytes() == file.read_bytes()


@pytest.mark.goal(id="R5")
def test_every_cut_and_every_flipped_bit_is_refused_or_changes_nothing(file):
    content, before = file.read_bytes(), read_model(file)
    damaged = [*(content[:length] for length in range(len(content))), content + b"0"]
    for byte in range(len(content)):
        damaged += [content[:byte] + bytes([content[byte] ^ 1 << bit]) + content[byte + 1 :] for bit in range(8)]
    for data in damaged:
        with contextlib.suppress(DiffAEError):
            model = read_model(SimpleNamespace(name=file.name, read_bytes=partial(bytes, data)))
            assert (model.kind, model.description, len(data)) == (before.kind, before.description, len(content))
            assert all(torch.equal(model.tensors[name], value) for name, value in before.tensors.items())


LIES = [
    ("a", {"shape": [10**15]}), ("a", {"data_offsets": [0, 2**60]}), ("a", {"data_offsets": [4, 12]}),
    ("a", {"dtype": "F64"}), ("a", {"shape": 2}), ("__metadata__", {"sha256": "0" * 64}), ("__metadata__", {"kind": 3}),
    ("__metadata__", {"kind": "latent"}), ("__metadata__", {"description": []}), ("__metadata__", {"version": "1"}),
]  # fmt: skip


def test_headers_that_lie_are_one_line(file):
    content = file.read_bytes()
    for data in (
        b"", b"0" * 7, b"\0" * 8, b"\0" * 100, b"\2\0\0\0\0\0\0\0{}", b"PK\3\4" + content,
        *(size.to_bytes(8, "little") + content[8:] for size in (2**64 - 1, 2**40, 2 * len(content), 1)),
        *(b"\x80\x0d\3\0\0\0\0\0" + start * 200_000 for start in (b"[", b'{"a":')),
        *(with_header(content, key, **values) for key, values in LIES),
    ):  # fmt: skip
        file.write_bytes(data)
        assert complaint(read_model, file).startswith("model.safetensors: ")
        with contextlib.suppress(DiffAEError):
            read_description(file)
    file.write_bytes(with_header(content, "__metadata__", version=2, description={"of": "another kind"}))
    assert "was written by a newer version of monai_diffae; update the package" in complaint(read_model, file)
    file.write_bytes(with_header(content, "__metadata__"))
    assert "has no description of a model of this package" in complaint(read_model, file)
    file.write_bytes(content)
    with safe_open(file, "pt") as opened:
        noted = opened.metadata() | {"note": "scan of John Doe"}
    save_file({name: value.contiguous() for name, value in TENSORS.items()}, file, noted)
    assert complaint(read_model, file).startswith("model.safetensors: ")  # push would send it
    file.write_bytes(content)
    assert "holds a diffusion autoencoder, not a latent DDIM" in complaint(read_model, file, "latent")


MKDIR, NOTHING = {"_target_": "os.mkdir", "path": "proof"}, {"_target_": "torch.nn.Identity"}
HOSTILE = {
    **{f"never {n}": (NEVER, change) for n, change in enumerate((
        {"seed": "$__import__('os').mkdir('proof')"}, {"image_size": [16, "$print(1)"]}, {"seed": "%a.json#b"},
        {"inferer": {**NOTHING, "_requires_": ["@a"]}}, {"inferer": {**NOTHING, "_mode_": "debug"}}, {"a b": 1},
        {"note": "Doe, Jane"}, {"note": "/home/doe"}, {"data": {"site": "Doe Jane"}}, {"data": {"/home/doe": 1}},
        {"$print(1)": 1}, {"note": "a" * 101}, {"a": "@b", "b": "@a"}, {"a": ["@##a", "@##a"]}, {"a": [1] * 30_000},
        {f"a{n}": [f"@a{n + 1}"] * 2 for n in range(40)} | {"a40": 1}, {"seed": json.loads("[" * 60 + "]" * 60)},
    ))},
    **{f"untrusted {n}": (UNTRUSTED, change) for n, change in enumerate((
        {"inferer": MKDIR}, {"other": MKDIR}, {"name": "os.mkdir", "inferer": {**MKDIR, "_target_": "@name"}},
        {"preprocessing": {"_target_": "Compose", "transforms": [MKDIR]}}, {"inferer": {"_target_": [1]}},
        {"inferer": {"_target_": "monai_diffae.train", "bundle": "x"}}, {"inferer": {"_target_": "torch.os.mkdir"}},
        {"inferer": {"_target_": "Lambdad", "keys": "image", "func": "@seed"}},
        {"network_def": {"_target_": "monai.networks.nets.resnet18", "pretrained": True}},
    ))},
    **{f"misleading {n}": ("", change) for n, change in enumerate((  # a section is never built, whatever refers to it
        {"inferer": "@recipe#a", "recipe": {"a": MKDIR}}, {"inferer": "@inferer"}, {"inferer": "@nothing"},
        {"inferer": {**NOTHING, "a": "@##recipe#a"}, "recipe": {"a": MKDIR}}, {"frozen": [[1], 2]}, {"figures": 1},
        {"first_stage": "@recipe#a", "recipe": {"a": MKDIR}}, {"first_stage": {**NOTHING, "a": "@first_stage"}},
    ))},
    "too large": ("image_size is [100000, 100000]; it must be", {"image_size": [100_000, 100_000]}),
}  # fmt: skip


@pytest.mark.goal(id="R20")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_description_runs_nothing_and_is_one_line(bundle, name, monkeypatch):
    monkeypatch.chdir(bundle.parent)  # a proof is a folder here
    (message, change), file = HOSTILE[name], bundle / "models" / "model.safetensors"
    model = read_model(file)
    write_unchecked(file, model, model.description | deepcopy(change))
    line = complaint(load_bundle, bundle, "cpu")
    assert message in line
    assert len(line) <= 300
    if message == NEVER:
        assert complaint(read_description, file) == line
    assert not os.path.lexists("proof")


def test_what_a_file_cannot_hold_is_named_when_it_is_written(tmp_path):
    for description, message in (
        ({"net": {"a": [1, "$f()"]}}, "net#a#1: is '$f()', which a model file cannot hold; write a number"),
        ({"note": "two words"}, "note: is 'two words', which"), ({"a": {"b": object}}, "a#b: is a type, which"),
        ({"a": {"b c": 1}}, "'a#b c': is no name of a value, which"),
    ):  # fmt: skip
        assert complaint(write_model, tmp_path / "m", "autoencoder", TENSORS, description).startswith(message)
    assert list(tmp_path.iterdir()) == []
    names = ["T1 pre-contrast", "FLAIR"]
    file = write_model(tmp_path / "m", "autoencoder", TENSORS, {"sequences": names})
    assert read_description(file)["sequences"] == names


def test_weights_that_cannot_be_used_are_one_line(bundle, tmp_path):
    network = nn.BatchNorm1d(2)
    network.register_buffer("measured", torch.tensor(float("nan")))
    state = network.state_dict()
    read_model(write_model(tmp_path / "a", "latent", state, {})).load_into(network)  # it is measured later
    for name, value in (("weight", float("inf")), ("running_mean", float("nan"))):
        file = write_model(tmp_path / "a", "latent", {**state, name: torch.full((2,), value)}, {})
        assert complaint(read_model(file).load_into, network).startswith("a: holds weights that are not finite")
    write_for_monai(bundle / "models" / "model.pt", weights(bundle))
    load_bundle(bundle, "cpu")
    torch.save(weights(bundle), bundle / "models" / "model.pt")
    message = "model.pt: another program has written it; remove it to use model.safetensors"
    assert complaint(load_bundle, bundle, "cpu").startswith(message)
    rewrite(bundle, lambda tensors: {name: value for name, value in tensors.items() if "head" not in name})
    assert "weights do not fit the network of the configuration, the first is 'enco" in complaint(load_bundle, bundle)
    assert complaint(load_first_stage, bundle).startswith("bundle: is no first stage")


def test_values_that_formulas_used_cannot_be_changed(bundle):
    for key in ("#image_size", "image_size::0", "::image_size", ""):
        assert "the model's description has no such key" in complaint(load_bundle, bundle, "cpu", {key: [32, 32]})
    for overrides in ({"image_size": [32, 32]}, {"model_range": [0, 1]}, {"channel_mult#0": 2}):
        message = ": the training computed other values from it, so it is fixed; train another model"
        assert message in complaint(load_bundle, bundle, "cpu", overrides)
    assert load_bundle(bundle, "cpu", {"image_size": [16, 16], "percentiles": [1, 99]}).image_shape == (1, 16, 16)
