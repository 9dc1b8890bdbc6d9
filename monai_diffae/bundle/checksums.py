"""SHA-256 of a bundle's weights and configuration, and of other files."""

# tested in tests/bundle/test_loading.py

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import BinaryIO

from monai_diffae.bundle.layout import MODEL, check_trained, model_config_file, models_folder

_SETTLED_S = 2.0  # file systems store the time of a change to 2 s or better
_MOST_KNOWN = 128
_known: dict[tuple[int, ...], str] = {}  # checksums of files, by what changes whenever a file is written or replaced


def checksum(directory: str | os.PathLike[str]) -> str:
    """SHA-256 of a bundle's weights.

    The weights of a first stage are not included, because a model only loads the first stage of its own training.

    Raises:
        ConfigError: the bundle is not trained.
    """
    models = models_folder(directory)
    check_trained(directory, models)
    return cached_checksum(models / MODEL)


def config_checksum(directory: str | os.PathLike[str]) -> str:
    """SHA-256 of the file that describes a bundle's model."""
    return file_checksum(model_config_file(directory))


def cached_checksum(path: Path) -> str:
    """SHA-256 of a file; a file that has not changed since the last call is not read again.

    A change always updates the file's time of change, which no program can set. That time is only as fine as the file
    system's clock, so a file that changed within the last two seconds is read at every call.
    """
    with path.open("rb") as stream:
        state = os.fstat(stream.fileno())
        if not 0 <= state.st_ctime_ns < time.time_ns() - _SETTLED_S * 1e9:
            return _digest(stream)
        identity = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
        digest = _known.get(identity)
        if digest is None:
            digest = _digest(stream)
            if len(_known) >= _MOST_KNOWN:
                _known.clear()
            _known[identity] = digest
        return digest


def file_checksum(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as stream:
        return _digest(stream)


def _digest(stream: BinaryIO) -> str:
    digest = hashlib.sha256()
    for block in iter(lambda: stream.read(1 << 20), b""):
        digest.update(block)
    return digest.hexdigest()
