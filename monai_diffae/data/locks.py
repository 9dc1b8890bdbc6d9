"""Locks between processes. The operating system releases a lock when its process ends, however it ends."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from monai_diffae.data.atomic import disk_errors
from monai_diffae.errors import BusyError


class ProcessLock:
    """A lock that one process at a time can have.

    Args:
        path: the file of the lock, whose folder is made.
        busy: the message of the error if another process keeps the lock.
        timeout_s: how long to wait for it; None: as long as it takes.

    Example:
        >>> with ProcessLock("/tmp/example.lock"):
        ...     pass
    """

    def __init__(self, path: str | os.PathLike[str], busy: str = "", timeout_s: float | None = None) -> None:
        self.path = Path(path)
        self._busy = busy
        self._lock = FileLock(self.path, timeout=-1 if timeout_s is None else timeout_s)

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            BusyError: another process keeps it.
            MachineError: its folder cannot be written.
        """
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
