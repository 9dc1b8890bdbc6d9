"""Files of ``torch.save``: written so that they are complete or absent, and read without running code in them."""

import errno
import os
import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monai_diffae.errors import ScanError, UnsafeInputError, quoted

# what torch (2.13) says about files that it refuses because reading them would call something
_REFUSALS = ("Unsupported global", "unsupported GLOBAL", "Unsupported operand", "Can only ", "Trying to call", "reduce")


def save_tensors(content: Mapping[str, Any], path: Path) -> None:
    """Write a file, and read it back from the disk. A full disk raises the system's error, not one of torch's own."""
    with path.open("wb") as stream:
        try:
            torch.save(content, stream)
        except RuntimeError as error:
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None
    _check_written(path)


def save_bytes(parts: Sequence[bytes | memoryview], path: Path) -> None:
    """Write a file of several parts, and read it back from the disk."""
    with path.open("wb") as stream:
        stream.writelines(parts)
    _flush(path)
    with path.open("rb") as stream:
        if any(stream.read(len(part)) != part for part in parts):
            raise OSError(errno.EIO, os.strerror(errno.EIO))


def _flush(path: Path) -> None:
    """Write a file to the disk, so that it is then read from there and not from the system's copy in memory."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _check_written(path: Path) -> None:
    """Compare a new file with the checksums that torch has computed of the tensors in memory."""
    _flush(path)
    try:
        is_whole = zipfile.is_zipfile(path)
        check_archive(path)
    except zipfile.BadZipFile:
        is_whole = False
    if not is_whole:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def check_archive(path: Path) -> None:
    """Compare the checksums in a zip archive, as torch does not when it reads one; ignore other files."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"Bad CRC-32 for file {damaged!r}")


def read_torch_file(path: Path, damaged: str, prefix: str | None = None) -> Any:
    """Read plain values and tensors, or those whose names have a prefix; ``damaged`` ends the error's message."""
    try:
        check_archive(path)
        # of PyTorch before 1.6, or damaged: torch itself decides
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipfile.is_zipfile(path) else []
        if names:  # something to call that plain tensors do not need
            raise UnsafeInputError(f"{path.name}: contains {quoted(min(names))}, which may run code; get a state dict")
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
            raise UnsafeInputError(f"{path.name}: would run code when loaded; get it as a plain state dict") from error
        raise ScanError(f"{path.name}: {damaged}") from error
    return content


def _is_refusal(error: Exception, path: Path) -> bool:
    text = str(error)
    if "Unsupported operand" in text:
        with path.open("rb") as file:  # an archive or a pickle of protocol 2 or later, unlike text and other formats
            if file.read(2) not in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
                return False
    is_archive = "weights_only=True" in text and ("TorchScript" in text or ".tar" in text)
    return is_archive or (isinstance(error, pickle.UnpicklingError) and any(words in text for words in _REFUSALS))


def _tensors(content: Any) -> Iterator[Tensor]:
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, Mapping | list | tuple):
        for value in content.values() if isinstance(content, Mapping) else content:
            yield from _tensors(value)


def _refuse_pretended(tensor: Tensor, path: Path) -> None:
    """Refuse a tensor without data, or one that repeats its data: a few bytes could ask for all of the memory."""
    is_plain = tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_quantized
    if not is_plain or tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        raise UnsafeInputError(
            f"{path.name}: contains a tensor of shape {quoted(tuple(tensor.shape))} without data; get the file again"
        )
