"""The state of a case's files (names, sizes, times), by which a changed file is recognised without reading it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from monai_diffae.data.formats.dicom import SERIES, list_series, split_series

# The suffixes of header files, with those of the files that hold their voxels.
_PARTNERS = {".hdr": ".img", ".hdr.gz": ".img.gz"}
# The suffixes of headers that can name the files with their voxels, and the field that does so.
_ELEMENT_DATA_FILE = re.compile(rb"ElementDataFile\s*[=:]\s*([^\r\n]*)")
_NAMES_VOXELS = {
    ".mhd": _ELEMENT_DATA_FILE,
    ".mha": _ELEMENT_DATA_FILE,
    ".nrrd": re.compile(rb"(?im)^data ?file\s*:\s*([^\r\n]*)"),
}
_LONGEST_HEADER = 1 << 16


def file_state(files: Sequence[str | os.PathLike[str]], *, change_times: bool = False) -> str:
    """A SHA-256 of the names, sizes and modification times of a case's files; no name can be read from it.

    A folder, such as a DICOM series, counts with the files in it. Folders above the files do not count, so a cohort can
    be moved. A file that is missing or forbidden has a state of its own, which changes when the file appears. With
    ``change_times``, the times count at which the system saw a change, too, which no program can set. Files that are
    exchanged for others of the same size and modification time, as an archive may give to all its files, then have
    another state; but so have copied files.
    """
    # with text, not with Path, which takes ten times as long for the many files of a cohort
    lines = [line for file in files for line in _lines(os.fspath(file), change_times)]
    return hashlib.sha256("\0".join(lines).encode(errors="surrogatepass")).hexdigest()


def scan_files(file: str | os.PathLike[str]) -> list[Path]:
    """The files that a scan is read from: the slices of a series, a header with its voxels, or the file itself.

    Example:
        >>> [path.name for path in scan_files("scans/a.nii.gz")]
        ['a.nii.gz']
    """
    path, uid = split_series(file)
    if path.is_dir():
        with contextlib.suppress(OSError):
            series = list_series(path)
            return [slice_ for name in series if uid in (None, name) for slice_ in series[name].files]
        return []
    partners = [Path(partner) for partner in _partners(os.fspath(path)) if partner != os.fspath(path)]
    return [path, *(inner for partner in partners for inner in _regular_files(partner))]


def _regular_files(path: Path) -> list[Path]:
    return sorted(inner for inner in path.iterdir() if inner.is_file()) if path.is_dir() else [path]


def _lines(file: str, change_times: bool) -> Iterator[str]:
    path = file.rpartition(SERIES)[0] if SERIES in file else file
    yield os.path.basename(file)  # noqa: PTH119 - see above
    yield from _state(path, change_times)
    for partner in _partners(path):
        yield os.path.basename(partner)  # noqa: PTH119 - see above
        yield from _state(partner, change_times)


def _state(path: str, change_times: bool) -> Iterator[str]:
    def text(state: os.stat_result) -> str:
        return f"{state.st_size} {state.st_mtime_ns}{f' {state.st_ctime_ns}' if change_times else ''}"

    try:
        state = os.stat(path)  # noqa: PTH116 - see above
        if not stat.S_ISDIR(state.st_mode):
            yield text(state)
        else:
            with os.scandir(path) as entries:
                states = [(entry.name, entry.stat()) for entry in entries if entry.is_file()]
            yield from sorted(f"{name} {text(each)}" for name, each in states)
    except (OSError, ValueError):  # no file has a name with a null character
        yield "absent"


def _partners(path: str) -> Iterator[str]:
    """The files with the voxels of a header file; the folder that holds them if the header names several or none."""
    for header, partner in _PARTNERS.items():
        if path.lower().endswith(header):
            yield path[: -len(header)] + partner
    for suffix, pattern in _NAMES_VOXELS.items():
        if path.lower().endswith(suffix):
            yield from _named_voxels(path, pattern)


def _named_voxels(path: str, pattern: re.Pattern[bytes]) -> Iterator[str]:
    folder, header = os.path.dirname(path), b""  # noqa: PTH120 - see above
    with contextlib.suppress(OSError, ValueError), open(path, "rb") as stream:
        header = stream.read(_LONGEST_HEADER)
    match = pattern.search(header)
    name = match[1].decode(errors="surrogateescape").strip() if match else "LOCAL"
    if match is None and path.lower().endswith(".mhd"):
        name = ""  # its voxels are never in the file itself
    if name != "LOCAL":  # else the voxels follow the header
        voxels = os.path.join(folder, name)  # noqa: PTH118 - see above
        yield voxels if os.path.isfile(voxels) else folder or "."  # noqa: PTH113 - see above
