"""Reads tensors from files without running any code that the files may contain."""

import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from monai_diffae.data.tensor_files import check_archive
from monai_diffae.errors import ConfigError, MachineError, UnsafeInputError

_LIGHTNING = ("pytorch_lightning.", "lightning.", "lightning_fabric.")


class LightningName:
    """Stands for PyTorch Lightning's names in a checkpoint, so that it is never imported; calling it gives a dict."""

    def __new__(cls, *_: Any) -> Any:
        """Return an empty dict: of this type, the only one into which the reader puts an AttributeDict's items."""
        return OrderedDict()


def read_weights(source: str | Path | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors of :func:`read_checkpoint`."""
    return read_checkpoint(source)[0]


def read_checkpoint(source: str | Path | Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
    """Read the tensors of a ``.safetensors`` or PyTorch file; in a training's checkpoint, those of its ``state_dict``.

    The tensors of PyTorch files stay on the disk until they are used, so an optimiser's state uses no memory; those of
    PyTorch before 1.6 are the exception. Also returned are the ``hyper_parameters`` of PyTorch Lightning. A state dict
    in place of a file is returned as it is.
    """
    if not isinstance(source, (str, Path)):
        return source, {}
    path = Path(source)
    if not path.is_file():
        wrong = "is a folder; give the file in it" if path.is_dir() else "there is no such file"
        raise ConfigError(f"{path.name or path}: {wrong}").at(path)
    try:
        if path.suffix == ".safetensors":
            return read_safetensors(path)[0], {}
        content = _read_pytorch(path)
    except OSError as error:
        raise MachineError(f"{path.name}: cannot be read ({error.strerror}); check its permissions") from error
    place = ""
    hyper_parameters: Any = {}
    if isinstance(content, Mapping) and "state_dict" in content:
        hyper_parameters = content.get("hyper_parameters")
        content, place = content["state_dict"], " as its state_dict"
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path.name}: holds a {type(content).__name__}{place}, not named weights; give a checkpoint")
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    return tensors, hyper_parameters if isinstance(hyper_parameters, Mapping) else {}


@contextmanager
def named_after(source: object) -> Iterator[None]:
    """Begin the message of a ConfigError with the file's name, if ``source`` is a path."""
    try:
        yield
    except ConfigError as error:
        if not isinstance(source, (str, Path)):
            raise
        raise ConfigError(f"{Path(source).name}: {error}") from error


def _read_pytorch(path: Path) -> Any:
    """Read what ``torch.save`` wrote: plain Python values and tensors, with names of Lightning replaced."""
    is_zip = zipfile.is_zipfile(path)  # False for files of PyTorch before 1.6, and if the end is missing
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path) if is_zip else []
        unknown = sorted(name for name in names if not name.startswith(_LIGHTNING))
        if unknown:
            raise UnsafeInputError(
                f"{path.name}: contains {unknown[0]}, and loading that could run code; "
                "re-save only its state_dict, and its hyper_parameters as plain values, on a trusted machine"
            )
        with torch.serialization.safe_globals([(LightningName, name) for name in names]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they name folders, and the error has the same information
            check_archive(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip and not _is_compressed(path))
    except (OSError, UnsafeInputError):
        raise
    except Exception as error:  # the reader raises almost any error if the bytes are not a checkpoint
        raise UnsafeInputError(
            f"{path.name}: damaged, or not a plain state dict (loading it could run code); download it again, or "
            "re-save only its state_dict on a trusted machine"
        ) from error


def _is_compressed(path: Path) -> bool:
    """Whether an archive was packed again by a program that compresses: its tensors must be read, not mapped."""
    with zipfile.ZipFile(path) as archive:
        return any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a ``.safetensors`` file."""
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise UnsafeInputError(f"{Path(path).name}: damaged, or not a .safetensors file; download it again") from error
