"""Cache folders on disk, each locked while its process lives, so that those of killed processes can be removed."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from monai_diffae.errors import MachineError

_PREFIX, _LOCK = "diffae-cache-", ".lock"
_held: dict[Path, FileLock] = {}  # until the folder is removed; a lock cannot be sent to worker processes


def make_cache_folder(parent: str | os.PathLike[str] | None, gib: float) -> Path:
    """Make a folder for a cache of ``gib`` GiB on a disk with room for it; by default among the temporary files."""
    try:
        folder = _locked_folder(parent)
    except OSError as error:
        raise MachineError(f"cache_dir: cannot be written ({error.strerror}); choose another folder") from error
    free = shutil.disk_usage(folder).free / 1024**3
    if free < gib:
        remove_cache_folder(folder, os.getpid())
        raise MachineError(
            f"cache_dir: the cache needs {gib:.1f} GiB, but {free:.1f} GiB are free; choose another disk"
        )
    return folder


def _locked_folder(parent: str | os.PathLike[str] | None) -> Path:
    root = Path(tempfile.gettempdir() if parent is None else parent)
    root.mkdir(parents=True, exist_ok=True)
    hidden = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=root))
    lock = FileLock(hidden / _LOCK)
    lock.acquire()
    folder = root / f"{_PREFIX}{secrets.token_hex(4)}"
    hidden.rename(folder)  # it gets this name only once it is locked
    _held[folder] = lock
    return folder


def remove_cache_folder(folder: Path, owner: int) -> None:
    """Remove a cache, unless this is another process than its owner, such as a worker that ends."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
        if lock := _held.pop(folder, None):
            lock.release()


def remove_abandoned_caches(parent: str | os.PathLike[str] | None) -> None:
    """Remove the caches of processes that were killed: they hold the patients' pixels."""
    for folder in Path(tempfile.gettempdir() if parent is None else parent).glob(f"{_PREFIX}*"):
        if folder in _held:
            continue
        # it may belong to another user, or be in use
        with suppress(OSError, Timeout), FileLock(folder / _LOCK, timeout=0):
            shutil.rmtree(folder, ignore_errors=True)
