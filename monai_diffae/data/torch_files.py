"""Read files of ``torch.save`` without running code that they may contain, and tell hostile from damaged ones."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from monai_diffae.data.archives import check_archive
from monai_diffae.errors import ScanError, UnsafeInputError, quoted

# what torch (2.13) says about files that it refuses because reading them would call something
_REFUSALS = ("Unsupported global", "unsupported GLOBAL", "Unsupported operand", "Can only ", "Trying to call", "reduce")


def read_torch_file(path: Path, damaged: str, prefix: str | None = None) -> Any:
    """Read plain values and tensors, of a dictionary only the entries whose names begin with ``prefix``.

    ``damaged`` is what to say about a damaged file, after its name.
    """
    try:
        check_archive(path)
        _refuse_calls(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they name folders
            content = torch.load(path, map_location="cpu", weights_only=True)
        if prefix is not None:
            content = {name: value for name, value in content.items() if name.startswith(prefix)}
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
    """Refuse a file that names something to call that plain tensors do not need."""
    if not zipfile.is_zipfile(path):  # of PyTorch before 1.6, or damaged: torch itself decides
        return
    names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    if names:
        raise UnsafeInputError(
            f"{path.name}: contains {quoted(names[0])}, and loading that could run code; get the file from its author "
            "again, as a plain state dict"
        )


def _is_refusal(error: Exception, path: Path) -> bool:
    text = str(error)
    if "Unsupported operand" in text and not _is_pickle(path):  # text or another format
        return False
    is_archive = "weights_only=True" in text and ("TorchScript" in text or ".tar" in text)
    return is_archive or (isinstance(error, pickle.UnpicklingError) and any(words in text for words in _REFUSALS))


def _is_pickle(path: Path) -> bool:
    """Whether a file begins as ``torch.save`` writes it: an archive, or a pickle of protocol 2 or later."""
    with path.open("rb") as file:
        return file.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


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
