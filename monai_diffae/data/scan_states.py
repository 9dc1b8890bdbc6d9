"""Has a scan changed? Its files, their state, which is known without reading them, and their content."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from monai_diffae.data.cases import Case
from monai_diffae.data.fingerprints import CHANNEL, digest, file_checksum, voxel_file, voxel_files
from monai_diffae.lazy import on_first_use
from monai_diffae.policies import PathLike

with on_first_use:
    import numpy as np

    from monai_diffae.data.formats import dicom

_NOT_IMAGES = ("id", "slice")  # entries of a case's item


def scan_files(file: PathLike) -> list[Path]:
    """The files that a scan is read from: the slices of a series, a header with its voxels, or the file itself."""
    path, uid = dicom.split_series(file)
    if path.is_dir():
        with contextlib.suppress(OSError):
            series = dicom.list_series(path)
            return [slice_ for name in series if uid in (None, name) for slice_ in series[name].files]
        return []
    return [path, *map(Path, voxel_files(path))]


def content_hash(files: Sequence[PathLike]) -> str:
    """The SHA-256 of a case's files, whatever their names; missing files are empty. One file: as ``sha256sum``."""
    # the order of the files within a scan says nothing, and a series may be renamed
    scans = [sorted(_file_hash(inner) for inner in scan_files(file)) + _channel(file) for file in files]
    if len(scans) == 1 and len(scans[0]) == 1:
        return scans[0][0]
    return digest("\n".join(" ".join(hashes) for hashes in scans))


def item_hash(item: Mapping[str, Any]) -> str:
    """The :func:`content_hash` of all images of an item of :class:`Case`; images in memory do not count."""
    return content_hash(_files(item))


def scan_contents(cases: Sequence[Case]) -> list[str]:
    """The hash of each case's images, see :func:`content_hash`; the files are read."""
    return [item_hash(case.item()) for case in cases]


def file_state(files: Sequence[PathLike]) -> str:
    """A SHA-256 of names, sizes and times of files, without the folders above them: a change is noticed unread."""
    # with text, not with Path, which takes ten times as long for the many files of a cohort; a copy has another state,
    # as the times at which the system saw a change count
    return digest("\0".join(line for file in files for line in _state_lines(os.fspath(file))))


def scan_states(cases: Sequence[Case]) -> list[str]:
    """The :func:`file_state` of each case; nothing is read."""
    cached_state = cache(file_state)  # many cases may be slices of a volume
    return [cached_state(_files(case.item())) for case in cases]


def item_states(items: Sequence[Mapping[str, Any]]) -> list[str]:
    """A SHA-256 of each item of :class:`Case`: its id, slice, the :func:`file_state` and the images in memory."""
    cached_state = cache(file_state)

    def state(item: Mapping[str, Any]) -> str:
        others = {key: value for key, value in item.items() if key not in ("id", "slice", "index")}
        arrays = [np.asarray(value) for _, value in sorted(others.items()) if not _is_path(value)]
        names = f"{item.get('id')} {item.get('slice')} {cached_state(_files(item))} {sorted(others)}"
        return digest(names, *arrays)

    return [state(item) for item in items]


def cohort_fingerprint(cases: Sequence[Case]) -> str:
    """SHA-256 of a cohort's ids, slices, splits and file sizes, in any order; no name can be read from it."""
    lines = []
    for case in cases:
        images = sorted(case.images.items())
        files = [(key, file) for key, image in images for file in (image if isinstance(image, tuple) else (image,))]
        sizes = [" ".join([f"{key}={_size(file)}", *_channel(file)]) for key, file in files]
        lines.append(" ".join([digest(case.file_name), str(case.slice_index), str(case.split), *sizes]))
    return digest("\n".join(sorted(lines)))


def _size(path: PathLike) -> int:
    """Bytes of a file, of both files of a NIfTI pair, or of all files in a series' folder; -1 if one is missing."""
    path = os.fspath(path).rpartition("#series=")[0] or os.fspath(path).partition(CHANNEL)[0]
    try:
        states = [os.stat(file) for file in {path, voxel_file(path)}]  # noqa: PTH116 - as file_state
        if stat.S_ISDIR(states[0].st_mode):
            states = [entry.stat() for entry in os.scandir(path) if entry.is_file()]
        return sum(state.st_size for state in states)
    except OSError:
        return -1


def _files(item: Mapping[str, Any]) -> tuple[str, ...]:
    images = [value for key, value in sorted(item.items()) if key not in _NOT_IMAGES]
    files = [file for image in images for file in (image if isinstance(image, (list, tuple)) else [image])]
    return tuple(os.fspath(file) for file in files if isinstance(file, (str, os.PathLike)))


def _is_path(value: Any) -> bool:
    return isinstance(value[0] if isinstance(value, (list, tuple)) and value else value, (str, os.PathLike))


def _channel(file: PathLike) -> list[str]:
    """The number of the channel that a path names, as text, if it names one."""
    return [os.fspath(file).rpartition(CHANNEL)[2]] if CHANNEL in os.fspath(file) else []


def _file_hash(file: Path) -> str:
    try:
        return file_checksum(file) if file.is_file() else ""
    except (OSError, ValueError):  # no file has a name with a null character
        return ""


def _state_lines(file: str) -> Iterator[str]:
    path = file.rpartition("#series=")[0] or file
    path = path.partition(CHANNEL)[0]
    for name, each in ((file, path), *((voxels, voxels) for voxels in voxel_files(path))):
        yield os.path.basename(name)  # noqa: PTH119 - see above
        try:
            state = os.stat(each)  # noqa: PTH116 - see above
            if not stat.S_ISDIR(state.st_mode):
                yield _state_text(state)
            else:
                with os.scandir(each) as entries:
                    states = [(inner.name, inner.stat()) for inner in entries if inner.is_file()]
                yield from sorted(f"{entry} {_state_text(state)}" for entry, state in states)
        except (OSError, ValueError):  # no file has a name with a null character
            yield "absent"


def _state_text(state: os.stat_result) -> str:
    return f"{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}"
