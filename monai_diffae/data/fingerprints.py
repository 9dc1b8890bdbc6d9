"""Is it the same? SHA-256 of texts, arrays and files; and what the path of a scan names."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_diffae.policies import PathLike

if TYPE_CHECKING:  # every command imports this module, so it is light
    from numpy.typing import NDArray

CHANNEL = "#channel="
"""Between a file of several channels and the number of one of them, which counts from 0."""
_VOXELS_OF = {".hdr": ".img", ".hdr.gz": ".img.gz"}  # by the suffixes of their headers
_VOXELS_FIELD = re.compile(rb"(?im)^\s*(?:ElementDataFile\s*[=:]|data ?file\s*:(?!=))\s*([^\r\n]*)")
_LONGEST_HEADER = 1 << 16

_SETTLED_NS = 2 * 10**9  # file systems store the time of a change to 2 s or better
_MOST_CACHED = 16384
_checksums: dict[tuple[int, ...], str] = {}  # of files, by what changes whenever a file is written or replaced


def split_channel(path: PathLike) -> tuple[Path, int | None]:
    """Split ``mr.nii.gz#channel=1`` into the file and the number of its channel; other paths have none (None).

    Example:
        >>> split_channel("mr.nii.gz#channel=1")
        (PosixPath('mr.nii.gz'), 1)
    """
    text, _, number = os.fspath(path).rpartition(CHANNEL)
    return (Path(text), int(number)) if text and number.isdecimal() else (Path(path), None)


def digest(*parts: str | bytes | memoryview | NDArray[Any]) -> str:
    """SHA-256 of texts (in UTF-8), bytes and arrays (in C order), one after the other, as 64 hexadecimal digits."""
    sha256 = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            sha256.update(part.encode("utf-8", "surrogatepass"))
        else:
            sha256.update(part if isinstance(part, (bytes, memoryview)) else part.tobytes())
    return sha256.hexdigest()


def json_digest(value: Any) -> str:
    """SHA-256 of plain values, as JSON with sorted keys; other values count as their text."""
    return digest(json.dumps(value, sort_keys=True, default=str))


def differing_keys(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """The keys in which two mappings differ as JSON, sorted."""
    first, second = (json.loads(json.dumps(each)) for each in (first, second))
    return sorted(key for key in {*first, *second} if first.get(key) != second.get(key))


def file_checksum(path: PathLike) -> str:
    """SHA-256 of a file; one that has not changed since the last call, nor in the last 2 seconds, is not read again."""
    with open(path, "rb") as stream:
        state = os.fstat(stream.fileno())
        identity = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
        if identity not in _checksums:
            sha256 = hashlib.sha256()
            for block in iter(lambda: stream.read(1 << 20), b""):
                sha256.update(block)
            if not 0 <= state.st_ctime_ns < time.time_ns() - _SETTLED_NS:
                return sha256.hexdigest()
            if len(_checksums) >= _MOST_CACHED:
                _checksums.clear()
            _checksums[identity] = sha256.hexdigest()
        return _checksums[identity]


def voxel_file(path: PathLike) -> str:
    """The file that holds the voxels: the .img file beside a .hdr file, else the file itself."""
    path = os.fspath(path)
    for header, voxels in _VOXELS_OF.items():
        if path.lower().endswith(header):
            stem, suffix = path[: -len(header)], path[-len(header) :]
            return stem + (voxels.upper() if suffix.isupper() else voxels)
    return path


def voxel_files(path: PathLike) -> Iterator[str]:
    """The file with the voxels of a header file, if that is another one."""
    path = os.fspath(path)
    if (voxels := voxel_file(path)) != path:
        yield voxels
    if path.lower().endswith((".mhd", ".mha", ".nrrd")) and os.path.isfile(path):  # noqa: PTH113 - see below
        header = b""
        with contextlib.suppress(OSError, ValueError), open(path, "rb") as stream:
            header = stream.read(_LONGEST_HEADER)
        name = match[1].decode(errors="surrogateescape").strip() if (match := _VOXELS_FIELD.search(header)) else ""
        if name and name.upper() != "LOCAL":  # else the voxels follow the header
            # text takes a tenth of the time of Path, and a cohort has many files
            yield os.path.join(os.path.dirname(path), name)  # noqa: PTH118, PTH120
