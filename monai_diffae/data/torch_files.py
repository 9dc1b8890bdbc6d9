"""Reads files of ``torch.save`` without running any code that they may contain, and tells hostile from damaged ones."""

# tested in tests/robustness/test_hostile_files.py

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from monai_diffae.data.archives import check_archive
from monai_diffae.errors import ScanError, UnsafeInputError

# what torch (2.13) says about files that it refuses because reading them would call something
_REFUSALS = ("Unsupported global", "unsupported GLOBAL", "Can only ", "Trying to call", "reduce")
_REFUSED_IN_PICKLES = "Unsupported operand"  # of other bytes, it says that they are no pickle


def read_torch_file(path: Path, damaged: str) -> Any:
    """Read plain values and tensors.

    Args:
        path: the file.
        damaged: what to say about a damaged file, after its name.

    Raises:
        UnsafeInputError: reading the file would call something that it names, or a tensor claims to be larger than
            what the file holds.
        ScanError: the file is damaged.
    """
    try:
        check_archive(path)
        _refuse_calls(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they name folders
            content = torch.load(path, map_location="cpu", weights_only=True)
        for tensor in _tensors(content):
            _refuse_pretended(tensor, path)
    except UnsafeInputError:
        raise
    except Exception as error:  # torch raises the errors of pickle and zip, and its own
        if _is_refusal(error, path):
            raise UnsafeInputError(
                f"{path.name}: would run code when it is loaded, and is refused; get it from its author again, as a "
                "plain state dict"
            ) from error
        raise ScanError(f"{path.name}: {damaged}") from error
    return content


def _refuse_calls(path: Path) -> None:
    """Refuse a file that names something to call which is not part of tensors."""
    if not zipfile.is_zipfile(path):  # of PyTorch before 1.6, or damaged: torch itself decides
        return
    names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    if names:
        raise UnsafeInputError(
            f"{path.name}: contains {names[0][:60]!r}, and loading that could run code; get the file from its author "
            "again, as a plain state dict"
        )


def _is_refusal(error: Exception, path: Path) -> bool:
    """Whether torch refused the file for what it would do, and not because it is damaged."""
    text = str(error)
    with path.open("rb") as stream:
        is_pickle = stream.read(1) == pickle.PROTO or zipfile.is_zipfile(path)
    is_archive = "weights_only=True" in text and ("TorchScript" in text or ".tar" in text)
    refusals = (*_REFUSALS, _REFUSED_IN_PICKLES) if is_pickle else _REFUSALS
    return is_archive or (isinstance(error, pickle.UnpicklingError) and any(words in text for words in refusals))


def _tensors(content: Any) -> Iterator[torch.Tensor]:
    if isinstance(content, torch.Tensor):
        yield content
    elif isinstance(content, Mapping):
        for value in content.values():
            yield from _tensors(value)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from _tensors(value)


def _refuse_pretended(tensor: torch.Tensor, path: Path) -> None:
    """Refuse a tensor without data, or one that repeats its data: a few bytes could ask for all of the memory."""
    is_plain = tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_quantized
    if not is_plain or tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        raise UnsafeInputError(
            f"{path.name}: contains a tensor of shape {str(tuple(tensor.shape))[:40]} without its data; get the file "
            "from its author again"
        )
