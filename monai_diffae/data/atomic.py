"""Write files so that they appear under their own name only when they are complete, and locks between processes."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from monai_diffae.data.fingerprints import digest
from monai_diffae.errors import BusyError, MachineError

# A full disk, an exceeded quota, a failing or read-only disk or a forbidden folder is a problem of the machine, not a
# bug. So is a folder that is a file, or a name that the file system does not accept.
_MACHINE_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG,
    errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ENOENT, errno.EISDIR,
}  # fmt: skip


TEMPORARY = ".tmp-"
"""The beginning of the names of temporary files and folders."""

_HOST = digest(socket.gethostname())[:8]
_TEMPORARY = re.compile(r"\.tmp-([0-9a-f]{8})-(\d+)-")
_ABANDONED_AFTER_S = 86400.0


def write_atomic(path: str | os.PathLike[str], writer: Callable[[Path], object]) -> Path:
    """Write a file so that it is either complete or absent, even if the process is killed."""
    path = Path(path)
    temporary = temporary_path(path.parent, _suffix(path))
    try:
        with disk_errors(path.name):
            path.parent.mkdir(parents=True, exist_ok=True)
            writer(temporary)
            flush(temporary)
            temporary.replace(path)
            flush(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


def temporary_path(folder: Path, suffix: str = "") -> Path:
    """A name that no other file or folder has, and that says which process uses it."""
    return folder / f"{TEMPORARY}{_HOST}-{os.getpid()}-{secrets.token_hex(4)}{suffix}"


def remove_abandoned(*folders: Path) -> None:
    """Delete the temporary files and folders that killed processes have left in these folders.

    They are abandoned if their process was one of this machine and has ended, or after a day.
    """
    for folder in folders:
        for path in folder.glob(f"{TEMPORARY}*"):
            with suppress(OSError):
                if _has_ended(path.name):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                elif time.time() - path.stat().st_mtime > _ABANDONED_AFTER_S:
                    path.unlink()


def _has_ended(name: str) -> bool:
    match = _TEMPORARY.match(name)
    if match is None or match[1] != _HOST:
        return False
    return not psutil.pid_exists(int(match[2]))


@contextmanager
def disk_errors(name: str) -> Iterator[None]:
    """Raise errors of the disk and of its permissions, in writing a file or folder, as errors of the machine."""
    try:
        yield
    except OSError as error:
        if error.errno in _MACHINE_ERRORS:
            reason = os.strerror(error.errno)
            raise MachineError(f"{name}: cannot be written ({reason}); free space or choose another folder") from error
        raise


def _suffix(path: Path) -> str:
    # nibabel and PIL choose the file format by the suffix
    return ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix


def flush(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, content: dict[str, Any]) -> Path:
    """Write an indented JSON file."""
    return write_atomic(path, lambda p: p.write_text(json.dumps(content, indent=2) + "\n"))


class ProcessLock:
    """A lock that one process at a time can have. The operating system releases it when its process ends."""

    def __init__(self, path: str | os.PathLike[str], busy: str = "", timeout_s: float | None = None) -> None:
        self.path = Path(path)
        self._busy = busy
        self._lock = FileLock(self.path, timeout=-1 if timeout_s is None else timeout_s)

    def acquire(self) -> None:
        """Take the lock."""
        with disk_errors(self.path.parent.name):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire()
            except Timeout as error:
                raise BusyError(self._busy) from error

    def release(self) -> None:
        """Give the lock back; does nothing without it."""
        self._lock.release()

    def __enter__(self) -> ProcessLock:
        self.acquire()
        return self

    def __exit__(self, *_: Any) -> None:
        self.release()
