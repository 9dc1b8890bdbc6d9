"""Hashes of the content of scans, by which a replaced or damaged scan is noticed, whatever its size and time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from monai_diffae.data.cases import Case
from monai_diffae.data.file_checksums import cached_checksum
from monai_diffae.data.file_states import file_state, scan_files

_NOT_IMAGES = ("id", "slice")  # entries of a case's item


def content_hash(files: Sequence[str | os.PathLike[str]]) -> str:
    """The SHA-256 of the bytes of a case's files; for a single file, the one that ``sha256sum`` prints.

    Names and times do not count, so a cohort can be copied or moved. A missing or forbidden file counts as an empty
    text. Right after a scan was read, its files are still in memory, and this costs little. Files that have not changed
    since the last call are not read again. Several files or folders, also as ``folder#series=UID``, are the channels of
    one image, in order.
    """
    # the order of the files within a scan says nothing, and a series may be renamed
    scans = [sorted(_file_hash(inner) for inner in scan_files(file)) for file in files]
    if len(scans) == 1 and len(scans[0]) == 1:
        return scans[0][0]
    return hashlib.sha256("\n".join(" ".join(hashes) for hashes in scans).encode()).hexdigest()


def item_hash(item: Mapping[str, Any]) -> str:
    """The hash of all images of an item as from :meth:`Case.item() <monai_diffae.data.cases.Case.item>`.

    Images in memory do not count.
    """
    return content_hash(_files(item))


def _files(item: Mapping[str, Any]) -> tuple[str, ...]:
    images = [value for key, value in sorted(item.items()) if key not in _NOT_IMAGES]
    files = [file for image in images for file in (image if isinstance(image, (list, tuple)) else [image])]
    return tuple(os.fspath(file) for file in files if isinstance(file, (str, os.PathLike)))


def scan_states(cases: Sequence[Case]) -> list[str]:
    """The state of each case's files, see :func:`~monai_diffae.data.file_states.file_state`; nothing is read.

    The times of change count: where a state differs without need, as after a copy, contents are compared.
    """
    known = cache(partial(file_state, change_times=True))  # many cases may be slices of a volume
    return [known(_files(case.item())) for case in cases]


def scan_contents(cases: Sequence[Case]) -> list[str]:
    """The hash of each case's images, see :func:`item_hash`; the files are read."""
    return [item_hash(case.item()) for case in cases]


def _file_hash(file: Path) -> str:
    try:
        return cached_checksum(file)
    except (OSError, ValueError):  # no file has a name with a null character
        return ""
