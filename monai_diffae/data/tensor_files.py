"""Files of tensors, written by ``torch.save`` so that they are complete or absent."""

from __future__ import annotations

import errno
import os
import zipfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from monai_diffae.data.archives import check_archive
from monai_diffae.data.atomic import write_atomic


def write_tensors(content: Mapping[str, Any], path: Path) -> None:
    """Write a file that is complete or absent, even if the process is killed."""
    write_atomic(path, partial(save_tensors, content))


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
