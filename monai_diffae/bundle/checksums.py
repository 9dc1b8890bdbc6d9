"""SHA-256 of a bundle's weights and configuration, and of other files."""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path

from monai_diffae.errors import ConfigError


def checksum(directory: str | os.PathLike[str]) -> str:
    """SHA-256 of a bundle's weights; a first stage of other weights than the model's own does not load."""
    path = Path(directory) / "models" / "model.pt"
    if not path.is_file():
        raise ConfigError(f"{Path(directory).name}: there is no models/model.pt; train the bundle first")
    state = path.stat()
    return _checksum_in_state(path.resolve(), state.st_mtime_ns, state.st_size)


@functools.lru_cache
def _checksum_in_state(path: Path, changed: int, size: int) -> str:
    return file_checksum(path)  # once in a command, though several parts of it ask


def config_checksum(directory: str | os.PathLike[str]) -> str:
    """SHA-256 of what describes a bundle's model: ``models/config.json``, or without it ``configs/train.json``."""
    ran = Path(directory) / "models" / "config.json"
    return file_checksum(ran if ran.is_file() else Path(directory) / "configs" / "train.json")


def file_checksum(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as stream:
        digest = hashlib.sha256()
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
