"""The state of a case's files (names, sizes, times), by which a changed file is recognised without reading it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Iterator, Sequence

from monai_diffae.data.formats.dicom import SERIES

# The suffixes of header files, with those of the files that may hold their voxels.
_PARTNERS = {".hdr": (".img",), ".hdr.gz": (".img.gz",)}


def file_state(files: Sequence[str | os.PathLike[str]]) -> str:
    """A SHA-256 of the names, sizes and modification times of a case's files; no name can be read from it.

    A folder, such as a DICOM series, counts with the files in it. Folders above the files do not count, so a cohort can
    be moved. A file that is missing or forbidden has a state of its own, which changes when the file appears.

    Args:
        files: the files or folders, also as ``folder#series=UID``.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "a.nii"
        ...     _ = path.write_bytes(b"scan")
        ...     before = file_state([path])
        ...     _ = path.write_bytes(b"another")
        ...     before == file_state([path])
        False
    """
    # with text, not with Path, which takes ten times as long for the many files of a cohort
    lines = [line for file in files for line in _lines(os.fspath(file))]
    return hashlib.sha256("\0".join(lines).encode(errors="surrogatepass")).hexdigest()


def _lines(file: str) -> Iterator[str]:
    path = file.rpartition(SERIES)[0] if SERIES in file else file
    yield os.path.basename(file)  # noqa: PTH119 - see above
    try:
        state = os.stat(path)  # noqa: PTH116 - see above
        if not stat.S_ISDIR(state.st_mode):
            yield f"{state.st_size} {state.st_mtime_ns}"
        else:
            with os.scandir(path) as entries:
                states = [(entry.name, entry.stat()) for entry in entries if entry.is_file()]
            yield from sorted(f"{name} {each.st_size} {each.st_mtime_ns}" for name, each in states)
    except (OSError, ValueError):  # no file has a name with a null character
        yield "absent"
    for header, partners in _PARTNERS.items():
        if path.lower().endswith(header):
            for partner in partners:
                yield from _lines(path[: -len(header)] + partner)
    if path.lower().endswith(".mhd"):
        yield from _lines(_voxels_of_mhd(path))


def _voxels_of_mhd(path: str) -> str:
    """The file with the voxels, which may be the file itself; its folder if the header names several files or none."""
    folder, name = os.path.dirname(path), ""  # noqa: PTH120 - see above
    with contextlib.suppress(OSError), open(path, "rb") as stream:
        match = re.search(rb"ElementDataFile\s*[=:]\s*([^\r\n]*)", stream.read(1 << 20))
        name = match[1].decode(errors="surrogateescape").strip() if match else ""
    voxels = path if name == "LOCAL" else os.path.join(folder, name)  # noqa: PTH118 - see above
    return voxels if os.path.isfile(voxels) else folder or "."  # noqa: PTH113 - see above
