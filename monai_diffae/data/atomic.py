"""Files that appear under their own name only when they are complete."""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_diffae.errors import MachineError

if TYPE_CHECKING:
    pass

# A disk that is full, a quota that is spent, a read-only disk, a forbidden folder: the machine's trouble, not a bug.
# So is a folder that is a file, or a name that the disk does not take.
_MACHINE = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG,
    errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ENOENT, errno.EISDIR,
}  # fmt: skip


def write_atomic(path: str | os.PathLike[str], writer: Callable[[Path], object]) -> Path:
    """Write a file so that it is either complete or absent, whatever happens meanwhile.

    ``writer`` fills a hidden temporary file of the same suffix in the same folder; it is then flushed to the disk
    and renamed over ``path`` in one step. If anything fails the temporary file goes and an older ``path`` stays.

    Args:
        path: the file's final name; its folder is created.
        writer: called with the temporary path, which it has to write.

    Returns:
        ``path``.

    Raises:
        MachineError: the disk is full, or the folder cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomic(Path(folder) / "a.txt", lambda p: p.write_text("done")).read_text()
        'done'
    """
    path = Path(path)
    temporary = path.parent / f".tmp-{os.getpid()}-{secrets.token_hex(4)}{_suffix(path)}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer(temporary)
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    except OSError as error:
        if error.errno in _MACHINE:
            reason = os.strerror(error.errno)
            raise MachineError(
                f"{path.name}: cannot be written ({reason}); free space or choose another folder"
            ) from error
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


def _suffix(path: Path) -> str:
    # nibabel and PIL choose the format by the suffix
    return ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, content: dict[str, Any]) -> Path:
    """Write a JSON file for people to read."""
    return write_atomic(path, lambda p: p.write_text(json.dumps(content, indent=2) + "\n"))
