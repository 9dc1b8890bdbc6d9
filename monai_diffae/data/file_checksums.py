"""SHA-256 of files; a file that has not changed is not read again."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import BinaryIO

_SETTLED_S = 2.0  # file systems store the time of a change to 2 s or better
_MOST_KNOWN = 16384
_known: dict[tuple[int, ...], str] = {}  # checksums of files, by what changes whenever a file is written or replaced


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
