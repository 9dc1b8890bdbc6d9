"""Files of weights that are sent to others: they hold numbers and the names of a network's layers, and nothing else."""

from __future__ import annotations

import json
import pickletools
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import nn

from monai_diffae.data.torch_files import read_torch_file
from monai_diffae.errors import ConfigError
from monai_diffae.official.checkpoint_files import read_safetensors

_MEMBER = re.compile(r"[\w-]+/(data\.pkl|data/\d+|version|byteorder|\.format_version|\.storage_alignment|\.data/\w+)")
_DEVICE = re.compile(r"(cpu|cuda|mps|xpu)(:\d+)?")
_WORDS = ("storage", "_metadata", "version")
_METADATA, _ENTRY = {"format": "pt"}, ["data_offsets", "dtype", "shape"]
_TRAIN = "train the bundle again"


def check_only_weights(path: Path, network: nn.Module) -> Mapping[str, torch.Tensor]:
    """The weights in a file of ``torch.save``, which may hold nothing else, such as texts or other files.

    The names of the network's layers may be in the file.
    """
    state: dict[str, torch.Tensor] = read_torch_file(path, f"is damaged; {_TRAIN}")
    if not zipfile.is_zipfile(path):
        raise ConfigError(f"{path.name}: was written by PyTorch before 1.6; {_TRAIN}")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if archive.comment or len(set(names)) < len(names) or not all(map(_MEMBER.fullmatch, names)):
            raise _something_else(path)
        pickled = archive.read(next(name for name in names if name.endswith("/data.pkl")))
    names_of_network = [*network.state_dict(), *(name for name, _ in network.named_modules())]
    known = {*_WORDS, "", *(part for name in names_of_network for part in name.split("."))}
    for text in _texts(pickled):
        if not (_DEVICE.fullmatch(text) or all(part in known or part.isdecimal() for part in text.split("."))):
            raise _something_else(path)
    if _hidden_bytes(state.values()):
        raise _something_else(path)
    return state


def check_same_weights(path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Check that a ``.safetensors`` file holds the same weights as a file of ``torch.save``, and nothing else."""
    tensors, metadata = read_safetensors(path)
    if tensors.keys() != weights.keys() or not all(_is_equal(tensors[name], weights[name]) for name in weights):
        raise ConfigError(f"{path.name}: holds other weights than the .pt file beside it; remove it, or {_TRAIN}")
    with path.open("rb") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    is_whole = path.stat().st_size == 8 + len(header) + num_bytes
    entries = json.loads(header, object_pairs_hook=list)  # a list keeps duplicate keys
    is_plain = len(entries) == len(tensors) + bool(metadata) and all(
        name == "__metadata__" or sorted(key for key, _ in entry) == _ENTRY for name, entry in entries
    )
    if not (is_whole and is_plain and metadata.items() <= _METADATA.items()):
        raise _something_else(path)


def _something_else(path: Path) -> ConfigError:
    return ConfigError(f"{path.name}: holds something other than weights; {_TRAIN}")


def _is_equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


def _texts(pickled: bytes) -> Iterator[str]:
    """All texts in a pickle, used or not; names of classes are checked when it is read."""
    for operation, argument, _ in pickletools.genops(pickled):
        if operation.name not in ("GLOBAL", "INST", "PROTO") and isinstance(argument, str | bytes):
            yield argument if isinstance(argument, str) else argument.decode(errors="replace")


def _hidden_bytes(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether the storages of tensors hold more than the tensors, as those of a part of a larger tensor do."""
    used: dict[int, int] = {}
    sizes: dict[int, int] = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        used[storage.data_ptr()] = max(used.get(storage.data_ptr(), 0), tensor.numel() * tensor.element_size())
    return any(sizes[place] > used[place] for place in sizes)
