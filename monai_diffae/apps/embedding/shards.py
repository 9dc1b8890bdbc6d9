"""Shards: pieces of an embedding run on disk, so that it can be resumed and shared by several processes."""

from __future__ import annotations

import glob
import logging
import shutil
import time
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_diffae.data.atomic import write_atomic
from monai_diffae.data.failures import Failure
from monai_diffae.errors import MachineError

logger = logging.getLogger(__name__)

_POLL_S = 0.2
_FIRST_WARNING_S = 60.0  # a shard takes some seconds of work
_WARNING_INTERVAL_S = 600.0
_ABANDONED_AFTER_S = 86400.0
_CHECKSUM_DIGITS = 12


def shards_folder(table: Path, made_from: str) -> Path:
    """The hidden folder beside a table for its shards; ``made_from`` is the checksum of what the table is made from."""
    return table.parent / f".{table.stem}-{made_from[:_CHECKSUM_DIGITS]}"


class Shards:
    """The shards of a cohort, in a folder that all processes can read and write.

    Which cases a shard holds depends only on ``num_cases`` and ``size``, so a run can be resumed with another number
    of processes.
    """

    def __init__(self, folder: Path, num_cases: int, size: int) -> None:
        self.folder, self.num_cases, self.size = folder, num_cases, size

    def __len__(self) -> int:
        return -(-self.num_cases // self.size)

    def positions(self, shard: int) -> range:
        """The positions in the cohort of a shard's cases."""
        return range(shard * self.size, min((shard + 1) * self.size, self.num_cases))

    def missing(self) -> list[int]:
        """The shards that are not written yet."""
        return [shard for shard in range(len(self)) if not self._path(shard).is_file()]

    def write(
        self,
        shard: int,
        positions: Sequence[int],
        rows: NDArray[np.float32],
        failures: Sequence[Failure],
        contents: Mapping[int, str],
    ) -> None:
        """Write a shard: rows (N, D), the cases' position of each (N,), failures, and hashes of scans by position."""
        hashed, hashes = np.array([*contents], np.int64), np.array([*contents.values()], np.str_)
        table = np.array([astuple(failure) for failure in failures], dtype=np.str_).reshape(len(failures), 3)

        def save(path: Path) -> None:
            with open(path, "wb") as stream:
                np.savez(
                    stream, positions=np.array(positions, np.int64), rows=rows, failures=table, hashed=hashed,
                    contents=hashes,
                )  # fmt: skip

        write_atomic(self._path(shard), save)

    def failed(self, shard: int) -> list[int]:
        """The positions of a shard's cases that failed."""
        (encoded,) = self._load(shard, "positions")
        return sorted({*self.positions(shard)} - {*encoded.tolist()})

    def add(
        self,
        shard: int,
        positions: Sequence[int],
        rows: NDArray[np.float32],
        failures: Sequence[Failure],
        contents: Mapping[int, str],
    ) -> None:
        """Add the results of a second attempt, made for all failed cases of a shard, to the shard's other cases."""
        old_positions, old_rows = self._load(shard, "positions", "rows")
        blocks = [block for block in (old_rows, rows) if len(block)]
        all_positions = np.array([*old_positions, *positions], np.int64)
        order = np.argsort(all_positions, kind="stable")
        merged = np.concatenate(blocks)[order] if blocks else rows
        all_contents = {**self._contents(shard), **contents}
        self.write(shard, all_positions[order].tolist(), merged, failures, all_contents)

    def read(self) -> tuple[list[int], NDArray[np.float32], list[Failure]]:
        """Read all shards: the case's position of each row, the rows (N, D) in the cohort's order, and the failures."""
        positions: list[int] = []
        blocks: list[NDArray[np.float32]] = []
        failures: list[Failure] = []
        for shard in range(len(self)):
            shard_positions, rows, shard_failures = self._load(shard, "positions", "rows", "failures")
            positions += shard_positions.tolist()
            failures += [Failure(*map(str, row)) for row in shard_failures]
            if len(rows):
                blocks.append(rows)
        return positions, np.concatenate(blocks) if blocks else np.empty((0, 0), np.float32), failures

    def contents(self) -> list[str]:
        """The hashes of all cases' scans, in the order of the cohort."""
        known = {position: content for shard in range(len(self)) for position, content in self._contents(shard).items()}
        return [known[position] for position in range(self.num_cases)]

    def wait(self, world_size: int, patience_s: float) -> None:
        """Wait until the others have written their shards, ``patience_s`` for each; log a warning now and then."""
        missing, last_progress, warn_at = self.missing(), time.monotonic(), _FIRST_WARNING_S
        while missing:
            own_shards = [shard for shard in missing if shard % world_size == 0]
            if own_shards:
                shutil.rmtree(self.folder, ignore_errors=True)  # the other run has written the table
                raise MachineError(
                    f"{self.folder.name}: another run of this table has removed {len(own_shards)} of {len(self)} "
                    "shards; run the command again"
                )
            time.sleep(_POLL_S)
            still_missing, waited_s = self.missing(), time.monotonic() - last_progress
            ranks = ", ".join(map(str, sorted({shard % world_size for shard in still_missing})))
            if len(still_missing) != len(missing):
                missing, last_progress, warn_at = still_missing, time.monotonic(), _FIRST_WARNING_S
            elif waited_s > patience_s:
                raise MachineError(
                    f"{len(still_missing)} of {len(self)} shards were not written by rank {ranks}; run the command "
                    "again to resume"
                )
            elif waited_s > warn_at:
                warn_at += _WARNING_INTERVAL_S
                logger.warning(
                    "waiting for %d of %d shards from rank %s; if that process has ended, stop this one too and run "
                    "the command again to resume", len(still_missing), len(self), ranks,
                )  # fmt: skip

    def remove(self) -> None:
        """Delete the folder, and abandoned ones: folders of the same table that nothing was added to for a day.

        Younger folders may belong to runs that have not ended.
        """
        shutil.rmtree(self.folder, ignore_errors=True)
        prefix = self.folder.name[:-_CHECKSUM_DIGITS]
        for folder in self.folder.parent.glob(glob.escape(prefix) + "[0-9a-f]" * _CHECKSUM_DIGITS):
            with suppress(OSError):
                if time.time() - folder.stat().st_mtime > _ABANDONED_AFTER_S:
                    shutil.rmtree(folder)

    def _contents(self, shard: int) -> dict[int, str]:
        positions, contents = self._load(shard, "hashed", "contents")
        return dict(zip(positions.tolist(), contents.tolist(), strict=True))

    def _load(self, shard: int, *names: str) -> list[NDArray[Any]]:
        try:
            with np.load(self._path(shard), allow_pickle=False) as content:
                return [content[name] for name in names]
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise MachineError(
                f"{self.folder.name}/{self._path(shard).name}: cannot be read; delete it and run the command again"
            ) from error

    def _path(self, shard: int) -> Path:
        return self.folder / f"{shard:06d}.npz"
