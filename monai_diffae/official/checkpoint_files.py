"""Tensors out of files, without running any code that the files may hold."""

from __future__ import annotations

import json
import math
import mmap
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from monai_diffae.errors import ConfigError, MachineError, UnsafeInputError

SAFETENSORS_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip

_LIGHTNING = ("pytorch_lightning.", "lightning.", "lightning_fabric.")


class LightningName:
    """Stands for whatever a checkpoint names of PyTorch Lightning; called, it ignores that and is an empty dict.

    Lightning's checkpoints hold classes of its own beside the weights: as the keys of ``callbacks`` (until 1.5), as
    ``AttributeDict``. PyTorch's ``weights_only`` reading refuses such files. Here the names come to this class:
    Lightning is never imported, and nothing of what a file wants done with its names happens.

    Example:
        >>> LightningName("rm", "-rf")
        OrderedDict()
    """

    def __new__(cls, *_: Any) -> Any:
        """An empty dict, whatever it is called with."""
        # this very type, because the reader puts the items of an AttributeDict into no other
        return OrderedDict()


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a ``.safetensors`` or PyTorch file; of a training's checkpoint, those of its ``state_dict``.

    The tensors stay on the disk until they are used, so that the optimiser's state that a checkpoint also holds costs
    no memory; not so those of PyTorch before 1.6.

    Raises:
        ConfigError: there is no such file, or it holds something else, such as a list.
        MachineError: the file may not be read.
        UnsafeInputError: the file is damaged, or could only be read by running code that it holds.

    Example:
        >>> read_weights("last.ckpt")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: last.ckpt: there is no such file
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"{path.name or path}: is a folder; name the file in it")
    if not path.is_file():
        raise ConfigError(f"{path.name}: there is no such file")
    try:
        if path.suffix == ".safetensors":
            return read_safetensors(path)[0]
        content = _read_pytorch(path)
    except OSError as error:
        raise MachineError(f"{path.name}: cannot be read ({error.strerror}); check who may read it") from error
    place = ""
    if isinstance(content, Mapping) and "state_dict" in content:
        content, place = content["state_dict"], " as its state_dict"
    if not isinstance(content, Mapping):
        raise ConfigError(
            f"{path.name}: holds a {type(content).__name__}{place}, no weights by name; name a checkpoint or state dict"
        )
    return {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}


@contextmanager
def named_after(source: object) -> Iterator[None]:
    """Puts the name of the file before what a ConfigError says is wrong with its content.

    Args:
        source: the file's path; anything else names nothing.

    Example:
        >>> with named_after("folder/last.ckpt"):
        ...     raise ConfigError("x_T is missing")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: last.ckpt: x_T is missing
    """
    try:
        yield
    except ConfigError as error:
        if not isinstance(source, (str, Path)):
            raise
        raise ConfigError(f"{Path(source).name}: {error}") from error


def _read_pytorch(path: Path) -> Any:
    """What ``torch.save`` wrote: plain Python values and tensors, with names of Lightning made harmless."""
    is_zip = zipfile.is_zipfile(path)  # not so before PyTorch 1.6, and not if the end is missing
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path) if is_zip else []
        unknown = sorted(name for name in names if not name.startswith(_LIGHTNING))
        if unknown:
            raise UnsafeInputError(
                f"{path.name}: holds {unknown[0]}, and reading that could run code; "
                "in a place that you trust, save its state_dict alone, or as .safetensors"
            )
        with torch.serialization.safe_globals([(LightningName, name) for name in names]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they name folders, and the error says what there is to say
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except (OSError, UnsafeInputError):
        raise
    except Exception as error:  # the reader raises nearly anything for bytes that are no checkpoint
        raise UnsafeInputError(
            f"{path.name}: damaged, or holds more than tensors, and reading it could run code; "
            "fetch it again, or in a place that you trust save its state_dict alone, or as .safetensors"
        ) from error


def read_safetensors(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a ``.safetensors`` file and its metadata (https://huggingface.co/docs/safetensors).

    The tensors stay on the disk until they are used; what is written into them does not reach the file.

    Raises:
        UnsafeInputError: a header that is no JSON or does not describe the bytes that follow.
    """
    try:
        with Path(path).open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        start = 8 + int.from_bytes(content[:8], "little")
        if start > len(content):
            raise ValueError("a header longer than the file")
        header = json.loads(content[8:start])
        metadata = header.pop("__metadata__", {})
        return {name: _tensor(entry, content, start) for name, entry in header.items()}, metadata
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UnsafeInputError(
            f"{Path(path).name}: no intact .safetensors file ({type(error).__name__}); fetch it again"
        ) from error


def _tensor(entry: dict[str, Any], content: mmap.mmap, start: int) -> torch.Tensor:
    dtype, shape = SAFETENSORS_DTYPES[entry["dtype"]], entry["shape"]
    first, end = entry["data_offsets"]
    count = math.prod(shape)
    if (
        not 0 <= first <= end <= len(content) - start
        or end - first != count * dtype.itemsize
        or min(shape, default=0) < 0
    ):
        raise ValueError("a tensor that lies outside of the file")
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    if (start + first) % dtype.itemsize:  # as some writers leave it
        return torch.frombuffer(bytearray(content[start + first : start + end]), dtype=dtype).reshape(shape)
    return torch.frombuffer(content, dtype=dtype, count=count, offset=start + first).reshape(shape)
