"""The file of an embedding index: an SQLite database with z_sem or the reason of a failure for each case and model.

SQLite comes with Python, and gives what an index needs: a transaction is complete or absent even if the process is
killed or the machine loses power, readers see the state before or after a transaction, and a row can be replaced
without writing the others again. (Parquet files would need a list of valid parts, garbage collection and locks of our
own.) Connections live for one transaction, since a connection must not be carried into forked workers. The rollback
journal is used, not the write-ahead log, because the latter needs memory that all processes share.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from monai_diffae.errors import ConfigError, MachineError

_VERSION = 1
_BUSY_S = 60.0  # a transaction takes milliseconds, reading an index of 50,000 cases less than a second
_TABLES = (
    "CREATE TABLE IF NOT EXISTS entries "
    "(model TEXT, id TEXT, state TEXT NOT NULL, reason TEXT, PRIMARY KEY (model, id)) WITHOUT ROWID",
    # in a table of their own, so that states are compared without reading all z_sem
    "CREATE TABLE IF NOT EXISTS codes (model TEXT, id TEXT, z_sem BLOB NOT NULL, PRIMARY KEY (model, id))",
    f"PRAGMA user_version = {_VERSION}",
)


class IndexStore:
    """The database of an index, in a file that the first :meth:`write` creates."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def states(self, model: str) -> dict[str, str]:
        """The state of the files of each case of a model, by id."""
        if not self.path.exists():
            return {}
        with self._transaction() as database:
            return dict(database.execute("SELECT id, state FROM entries WHERE model = ?", (model,)))

    def read(self, model: str) -> tuple[list[str], NDArray[np.float32], dict[str, str]]:
        """One consistent state of a model's cases: ids, sorted; z_sem (N, D); and the reasons of failures by id."""
        if not self.path.exists():
            return [], np.empty((0, 0), np.float32), {}
        with self._transaction() as database:
            rows = database.execute("SELECT id, z_sem FROM codes WHERE model = ?", (model,)).fetchall()
            failed = "SELECT id, reason FROM entries WHERE model = ? AND reason IS NOT NULL"
            failures = dict(database.execute(failed, (model,)))
        rows.sort()
        z_sem = np.frombuffer(b"".join(blob for _, blob in rows), "<f4").reshape(len(rows), -1 if rows else 0)
        return [name for name, _ in rows], z_sem.astype(np.float32), dict(sorted(failures.items()))

    def write(self, model: str, codes: Mapping[str, NDArray[np.float32] | str], states: Mapping[str, str]) -> None:
        """Add or replace cases of a model by id: z_sem (D,) or why they failed, and file states; all in one step."""
        reasons = {name: code if isinstance(code, str) else None for name, code in codes.items()}
        entries = [(model, name, states[name], reason) for name, reason in reasons.items()]
        rows = [
            (model, name, code.astype("<f4").tobytes()) for name, code in codes.items() if not isinstance(code, str)
        ]
        with self._transaction(write=True) as database:
            database.executemany("DELETE FROM codes WHERE model = ? AND id = ?", [entry[:2] for entry in entries])
            database.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?)", entries)
            database.executemany("INSERT INTO codes VALUES (?, ?, ?)", rows)

    def remove(self, ids: Sequence[str], model: str | None = None) -> None:
        """Remove cases from one model, or from all."""
        if not ids or not self.path.exists():
            return
        condition = "id = ?" if model is None else "id = ? AND model = ?"
        rows = [(name,) if model is None else (name, model) for name in ids]
        with self._transaction(write=True) as database:
            for table in ("codes", "entries"):
                database.executemany(f"DELETE FROM {table} WHERE {condition}", rows)  # noqa: S608, texts of this file

    def keep_only(self, models: Sequence[str]) -> None:
        """Remove the entries of all other models."""
        if not self.path.exists():
            return
        marks = ", ".join("?" for _ in models)
        with self._transaction(write=True) as database:
            for table in ("codes", "entries"):
                database.execute(f"DELETE FROM {table} WHERE model NOT IN ({marks})", tuple(models))  # noqa: S608, only ?

    @contextlib.contextmanager
    def _transaction(self, write: bool = False) -> Iterator[sqlite3.Connection]:
        """Yield a connection; what was written appears at the end, or not at all."""
        try:
            with contextlib.closing(sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None)) as database:
                database.execute("PRAGMA secure_delete = ON")  # the z_sem of removed cases are overwritten
                self._prepare(database)
                database.execute("BEGIN IMMEDIATE" if write else "BEGIN")
                yield database
                database.execute("COMMIT")
        except sqlite3.OperationalError as error:
            raise MachineError(
                f"{self.path.name}: cannot be used ({error}); free space, or check the folder's permissions"
            ) from error
        except sqlite3.DatabaseError as error:
            raise ConfigError(
                f"{self.path.name}: is damaged or not an index ({error}); delete it, and update the index again"
            ) from error

    def _prepare(self, database: sqlite3.Connection) -> None:
        """Create the tables of a new file."""
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            database.execute("BEGIN IMMEDIATE")
            for statement in _TABLES:
                database.execute(statement)
            database.execute("COMMIT")
        elif version != _VERSION:
            raise ConfigError(f"{self.path.name}: another version wrote this index; delete it, and update it again")
