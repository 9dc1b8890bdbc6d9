"""Hashes of the content of scans, by which a replaced or rotten scan is recognised whatever its size and time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from monai_diffae.data.file_states import file_state, scan_files

_MOST_KNOWN = 1024
_NOT_IMAGES = ("id", "slice")  # entries of a case's item


def content_hash(files: Sequence[str | os.PathLike[str]]) -> str:
    """The SHA-256 of the bytes of a case's files; for a single file, the one that ``sha256sum`` prints.

    Names and times do not count, so a cohort can be copied or moved. A missing or forbidden file counts as an empty
    text. Right after a scan was read, its files are still in memory, and this costs little. Files that have not changed
    since the last call are not read again.

    Args:
        files: the files or folders, also as ``folder#series=UID``; several are the channels of one image, in order.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "a.nii"
        ...     _ = path.write_bytes(b"scan")
        ...     content_hash([path])[:16]
        '59ad1b2fc74287de'
    """
    names = tuple(map(os.fspath, files))
    return _content_hash(names, file_state(names))


def item_hash(item: Mapping[str, Any]) -> str:
    """The hash of all images of an item as from :meth:`Case.item() <monai_diffae.data.cases.Case.item>`.

    Images in memory do not count.
    """
    images = [value for key, value in sorted(item.items()) if key not in _NOT_IMAGES]
    files = [file for image in images for file in (image if isinstance(image, (list, tuple)) else [image])]
    return content_hash([file for file in files if isinstance(file, (str, os.PathLike))])


@lru_cache(maxsize=_MOST_KNOWN)
def _content_hash(names: tuple[str, ...], _state: str) -> str:
    # the order of the files within a scan says nothing, and a series may be renamed
    scans = [sorted(_file_hash(file) for file in scan_files(name)) for name in names]
    if len(scans) == 1 and len(scans[0]) == 1:
        return scans[0][0]
    return hashlib.sha256("\n".join(" ".join(hashes) for hashes in scans).encode()).hexdigest()


def _file_hash(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except (OSError, ValueError):  # no file has a name with a null character
        return ""
