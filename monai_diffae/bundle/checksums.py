"""SHA-256 of a bundle's weights and configuration, and of other files."""

# tested in tests/bundle/test_loading.py

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path

from monai_diffae.bundle.layout import MODEL, MODELS, model_config_file
from monai_diffae.errors import ConfigError


def checksum(directory: str | os.PathLike[str]) -> str:
    """SHA-256 of a bundle's weights.

    The weights of a first stage are not included, because a model only loads the first stage of its own training.

    Raises:
        ConfigError: the bundle is not trained.
    """
    path = Path(directory) / MODELS / MODEL
    if not path.is_file():
        raise ConfigError(f"{Path(directory).name}: there is no models/model.pt; train the bundle first")
    state = path.stat()
    return _checksum_in_state(path.resolve(), state.st_mtime_ns, state.st_size)


@functools.lru_cache
def _checksum_in_state(path: Path, changed: int, size: int) -> str:
    return file_checksum(path)  # cached, as several parts of a command need it


def config_checksum(directory: str | os.PathLike[str]) -> str:
    """SHA-256 of the file that describes a bundle's model."""
    return file_checksum(model_config_file(directory))


def file_checksum(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as stream:
        digest = hashlib.sha256()
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
