"""Checkpoints: files of torch with all parts of a training, read without running code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monai_diffae.bundle.training import TrainingDescription
from monai_diffae.data.torch_files import read_torch_file
from monai_diffae.errors import ConfigError, ScanError


def read_checkpoint(path: Path, parts: set[str]) -> dict[str, Any]:
    """Read a checkpoint that has these parts."""
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


def check_resumes(description: TrainingDescription, path: str | Path, overwrite: bool = False) -> None:
    """Check that a training can resume from a checkpoint, before it prepares its data for long.

    Args:
        description: the training.
        path: the file of the checkpoint; there may be none.
        overwrite: the training begins from its first step, although there is a checkpoint.

    Raises:
        ConfigError: the checkpoint belongs to another model or other data.
        UnsafeInputError: reading the file would run code.
        ScanError: the file cannot be read.

    Example:
        >>> check_resumes(TrainingDescription({}), "no_such_bundle/models/fast_checkpoint.pt")
    """
    path = Path(path)
    if path.is_file() and not overwrite:
        description.check_resumes(read_checkpoint(path, {"fingerprint", "model"}), path.name)
