"""Checkpoints: files of torch with all parts of a training, read without running code."""

# tested in tests/handlers/test_checkpoint.py

from __future__ import annotations

from pathlib import Path
from typing import Any

from monai_diffae.data.torch_files import read_torch_file
from monai_diffae.errors import ConfigError, ScanError


def read_checkpoint(path: Path, parts: set[str]) -> dict[str, Any]:
    """Read a checkpoint that has these parts.

    Raises:
        UnsafeInputError: reading the file would run code.
        ScanError: the file cannot be read.
        ConfigError: a part is missing.
    """
    damaged = "cannot be read as a checkpoint; copy it again, or set overwrite"
    checkpoint: dict[str, Any] = read_torch_file(path, damaged)
    if not isinstance(checkpoint, dict):
        raise ScanError(f"{path.name}: {damaged}")
    missing = parts - checkpoint.keys()
    if missing:
        raise ConfigError(
            f"{path.name}: is not a checkpoint of this package (no {min(missing)!r}); set overwrite to start again"
        )
    return checkpoint
