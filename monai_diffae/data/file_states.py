"""The state of a case's files (names, sizes, times), by which a changed file is recognised without reading it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from monai_diffae.data.formats.dicom import split_series

_PARTNERS = {".hdr": (".img",), ".gz": (".img.gz",), ".mhd": (".raw", ".zraw")}
"""The suffixes of the files that hold the voxels of a header file. (Of .gz, only .hdr.gz has such a file.)"""


def file_state(files: Sequence[Path]) -> str:
    """A SHA-256 of the names, sizes and modification times of a case's files; no name can be read from it.

    A folder, such as a DICOM series, counts with the files in it. Folders above the files do not count, so a cohort can
    be moved. A file that is missing or forbidden has a state of its own, which changes when the file appears.

    Args:
        files: the files or folders, also as ``folder#series=UID``.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "a.nii"
        ...     _ = path.write_bytes(b"scan")
        ...     before = file_state([path])
        ...     _ = path.write_bytes(b"another")
        ...     before == file_state([path])
        False
    """
    digest = hashlib.sha256()
    for file in files:
        for line in _lines(file):
            digest.update(line.encode(errors="surrogatepass") + b"\0")
    return digest.hexdigest()


def _lines(file: Path) -> Iterator[str]:
    path = split_series(file)[0]
    yield file.name
    try:
        with os.scandir(path) as entries:
            states = [(entry.name, entry.stat()) for entry in entries if entry.is_file()]
        yield from sorted(f"{name} {state.st_size} {state.st_mtime_ns}" for name, state in states)
    except NotADirectoryError:
        yield from map(_line, [path, *_partners(path)])
    except OSError:
        yield "absent"


def _partners(path: Path) -> list[Path]:
    stem = path.name.removesuffix(".gz")
    if path.suffix == ".gz" and not stem.endswith(".hdr"):
        return []
    return [path.with_name(Path(stem).stem + suffix) for suffix in _PARTNERS.get(path.suffix.lower(), ())]


def _line(path: Path) -> str:
    try:
        state = path.stat()
    except OSError:
        return "absent"
    return f"{state.st_size} {state.st_mtime_ns}"
