"""Read several files of a bundle as one set, while another process may replace them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from monai_diffae.bundle.layout import LOADED_FILES, models_folder
from monai_diffae.errors import MachineError

T = TypeVar("T")

_MOST_ATTEMPTS = 20
_LONGEST_PAUSE_S = 0.5


def read_consistently(
    bundle: str | os.PathLike[str], read: Callable[[Path], T], names: Collection[str] = LOADED_FILES
) -> T:
    """Read files of a bundle's model so that all of them belong to the same model.

    If one of the files is replaced meanwhile, they are read again. No lock is taken, so a folder that cannot be
    written can be read.
    """
    for attempt in range(_MOST_ATTEMPTS):
        folder = models_folder(bundle)
        with _watched(Path(bundle), folder, names) as is_unchanged:
            try:
                content = read(folder)
            except Exception:
                if is_unchanged():
                    raise
            else:
                if is_unchanged():
                    return content
        time.sleep(min(0.01 * 2**attempt, _LONGEST_PAUSE_S))
    raise MachineError(
        f"{Path(bundle).name}: its model was replaced during each of {_MOST_ATTEMPTS} attempts to read it; "
        "try again when no other process writes it"
    )


@contextmanager
def _watched(bundle: Path, folder: Path, names: Collection[str]) -> Iterator[Callable[[], bool]]:
    """Watch files; the function that this gives tells whether they still are what they were at the beginning."""
    # The files are held open, because the system may otherwise give a new file the inode of a deleted one.
    with ExitStack() as open_files:

        def opened(path: Path) -> os.stat_result | None:
            try:
                handle = os.open(path, os.O_RDONLY)
            except OSError:
                return _state(path)
            open_files.callback(os.close, handle)
            return os.fstat(handle)

        folder_before = opened(folder)
        before = {folder / name: opened(folder / name) for name in names}

        def is_unchanged() -> bool:
            # The folder comes first: while a newer set is put in its place, the files outside ``next`` are mixed. If
            # there is no ``next`` now, and every file is still the one that was opened before, they are one set.
            if models_folder(bundle) != folder or not _is_same_file(folder_before, _state(folder)):
                return False
            return all(_is_same_content(state, _state(path)) for path, state in before.items())

        yield is_unchanged


def _state(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _is_same_file(before: os.stat_result | None, after: os.stat_result | None) -> bool:
    if before is None or after is None:
        return before is after
    return (before.st_dev, before.st_ino) == (after.st_dev, after.st_ino)


def _is_same_content(before: os.stat_result | None, after: os.stat_result | None) -> bool:
    if not _is_same_file(before, after):
        return False
    if before is None or after is None:
        return True
    return (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
