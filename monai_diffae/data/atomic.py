"""Files that are complete or absent, locks between processes, and folders that grow by such files."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import socket
import tempfile
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from monai_diffae.data.fingerprints import differing_keys, digest
from monai_diffae.errors import BusyError, ConfigError, MachineError
from monai_diffae.lazy import on_first_use
from monai_diffae.policies import PathLike

with on_first_use:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

# A full disk, an exceeded quota, a failing or read-only disk or a forbidden folder is a problem of the machine, not a
# bug. So is a folder that is a file, or a name that the file system does not accept.
_MACHINE_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EFBIG,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.EISDIR,
}

TEMPORARY = ".tmp-"
"""The beginning of the names of temporary files and folders."""

_HOST = digest(socket.gethostname())[:8]
_ABANDONED_AFTER_S = 86400.0


def write_atomic(path: PathLike, writer: Callable[[Path], object]) -> Path:
    """Write a file so that it is either complete or absent, even if the process is killed."""
    path = Path(path)
    # nibabel and PIL choose the file format by the suffix
    temporary = temporary_path(path.parent, ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix)
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


def write_csv(path: Path, table: pd.DataFrame) -> Path:
    """Write a table as CSV with :func:`write_atomic`."""
    return write_atomic(path, lambda temporary: table.to_csv(temporary, index=False, lineterminator="\n"))


def temporary_path(folder: Path, suffix: str = "") -> Path:
    """A name that no other file or folder has, and that says which process uses it."""
    return folder / f"{TEMPORARY}{_HOST}-{os.getpid()}-{secrets.token_hex(4)}{suffix}"


def remove_abandoned(*folders: Path) -> None:
    """Delete temporary files and folders of processes that ended on this machine, and files that are a day old."""
    for path in (path for folder in folders for path in folder.glob(f"{TEMPORARY}*")):
        match = re.match(rf"\.tmp-{_HOST}-(\d+)-", path.name)
        with suppress(OSError):
            if match and not psutil.pid_exists(int(match[1])):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            elif is_abandoned(path):
                path.unlink()


def scratch_folder(owner: object, parent: PathLike | None = None) -> Path:
    """Make a folder that only this user can read, and that is deleted with its owner.

    It is made in ``parent``, by default among the system's temporary files. After a kill, the next one that is made
    there on this machine deletes it.
    """
    root = Path(tempfile.gettempdir() if parent is None else parent)
    remove_abandoned(root)
    folder = temporary_path(root)
    with disk_errors(root.name):
        folder.mkdir(mode=0o700, parents=True)
    weakref.finalize(owner, _remove_scratch, folder, os.getpid())
    return folder


def _remove_scratch(folder: Path, process: int) -> None:
    if os.getpid() == process:  # not in a worker that ends
        shutil.rmtree(folder, ignore_errors=True)


def check_space(folder: Path, num_bytes: int) -> None:
    """Make a folder named by ``cache_dir``, and raise an error if its disk has less free space."""
    with disk_errors("cache_dir"):
        folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        needs = f"the cache needs {num_bytes / 2**30:.1f} GiB, but {free / 2**30:.1f} GiB are free"
        raise MachineError(f"cache_dir: {needs}; choose another disk")


def is_abandoned(path: Path) -> bool:
    """Whether nothing was written to a file or folder for a day."""
    return time.time() - path.stat().st_mtime > _ABANDONED_AFTER_S


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

    def __init__(self, path: PathLike, busy: str = "", timeout_s: float | None = None) -> None:
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


# -- folders that grow by parts ----------------------------------------------------------------------------------------

_RECORD = ".made_from.json"  # readers of Parquet folders skip hidden files
_ROWS = 10_000  # of a row group


class PartFolder:
    """A folder to which any number of processes add files, which are complete or absent and never change.

    ``key`` (text, or values for JSON) is everything that the contents are made from; ``replace`` deletes parts that
    were made from something else, instead of refusing them.
    """

    suffix = ""  #: of the parts
    content = "results of other settings or another model"  #: what a refused folder holds

    def __init__(self, folder: Path, key: Any, *, process: int = 0, replace: bool = False) -> None:
        self.folder, self.process = folder, process
        self._token = secrets.token_hex(4)
        self._number = 0
        self._key = {"made_from": json.loads(json.dumps(key, sort_keys=True))}
        remove_abandoned(folder)
        if self._parts() and self._recorded_key() != self._key:
            if not replace:
                raise self._refused()
            self.remove()

    def remove(self) -> None:
        """Delete the parts, and the folder if nothing else is in it."""
        for file in [*self._parts(), self.folder / _RECORD]:
            file.unlink(missing_ok=True)
        with suppress(OSError):  # it holds files of the user, or does not exist
            self.folder.rmdir()
        self._number = 0

    def _add_part(self, write: Callable[[Path], object]) -> str:
        """Write the next part; returns its name."""
        if not self._number:
            self._number = max((int(part.name.split("-")[1]) for part in self._parts()), default=0)
        if not (self.folder / _RECORD).exists():  # another process may have removed the folder
            write_json(self.folder / _RECORD, self._key)
        self._number += 1
        # by name: in the order of time
        name = f"part-{self._number:06d}-{self.process:04d}-{self._token}{self.suffix}"
        write_atomic(self.folder / name, write)
        return name

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob(f"part-*{self.suffix}"))

    def _recorded_key(self) -> dict[str, Any] | None:
        try:
            return dict(json.loads((self.folder / _RECORD).read_text()))
        except (OSError, ValueError):
            return None

    def _refused(self) -> ConfigError:
        kept, own = ((key or {}).get("made_from") for key in (self._recorded_key(), self._key))
        differ = differing_keys(kept, own) if isinstance(kept, dict) and isinstance(own, dict) else []
        values = f" (other values of {', '.join(differ)})" if differ else ""
        return ConfigError(f"{self.folder.name}: holds {self.content}{values}; use the same again, or delete it")

    def _damaged(self, part: Path) -> MachineError:
        return MachineError(f"{self.folder.name}/{part.name}: cannot be read; delete it and run again")


class PartStore(PartFolder):
    """Rows by id, written by any number of processes; a killed run resumes with the ids that are missing.

    Each :meth:`append` writes one Parquet file. pandas, pyarrow, Spark and DuckDB (``folder/*.parquet``) read the
    folder as one table. If an id was written twice, the later row counts here.
    """

    suffix = ".parquet"

    def __init__(
        self, folder: Path, key: Any, *, id_column: str = "id", process: int = 0, replace: bool = False
    ) -> None:
        super().__init__(folder, key, process=process, replace=replace)
        self.id_column = id_column
        self._ids: dict[str, list[str]] = {}  # by the name of a part

    def append(self, rows: pd.DataFrame) -> None:
        """Write rows as one part. Each part takes milliseconds, so collect some seconds of work before."""
        if not rows.empty:
            table = pa.Table.from_pandas(rows, preserve_index=False).replace_schema_metadata(None)
            self._ids[self._add_part(lambda path: _write(path, table))] = table[self.id_column].to_pylist()

    def done(self) -> set[str]:
        """The ids of all rows, also those of other processes. Parts that were read before are not read again."""
        parts = self._parts()
        for part in parts:
            if part.name not in self._ids:
                self._ids[part.name] = self._load(part, [self.id_column])[self.id_column].to_pylist()
        return {each for part in parts for each in self._ids[part.name]}

    def read(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """All rows, sorted by id, with these columns besides the ids; None: with all."""
        wanted = None if columns is None else [self.id_column, *columns]
        try:
            parts = [self._load(part, wanted) for part in self._parts()]
        except MachineError as error:
            if isinstance(error.__cause__, FileNotFoundError):  # another process has merged the parts meanwhile
                return self.read(columns)
            raise
        parts = parts or [pa.table({name: pa.array([], pa.string()) for name in wanted or [self.id_column]})]
        # a column without values in one part has a type in another
        table = pa.concat_tables(parts, promote_options="permissive").to_pandas()
        return table.drop_duplicates(self.id_column, keep="last").sort_values(self.id_column, ignore_index=True)

    def merge(self, without: Collection[str] = ()) -> None:
        """Replace all parts by one without the rows of these ids; meanwhile, others may read but not write."""
        parts, rows = self._parts(), self.read()
        self.append(rows[~rows[self.id_column].isin([*without])])
        for part in parts:  # the oldest first, so that no replaced row counts again
            part.unlink()

    def _load(self, part: Path, columns: list[str] | None = None) -> pa.Table:
        try:
            return pq.ParquetFile(part).read(columns)
        except (OSError, pa.ArrowException) as error:
            raise self._damaged(part) from error


def _write(path: Path, table: pa.Table) -> None:
    texts = [field.name for field in table.schema if field.type in (pa.string(), pa.large_string())]
    pq.write_table(table, path, row_group_size=_ROWS, use_dictionary=texts, write_statistics=texts)
