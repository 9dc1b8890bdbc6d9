"""Rows that were measured already, kept in a file, so that an interrupted evaluation resumes."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai_diffae.apps.processes import Process
from monai_diffae.apps.results import checksum_of

logger = logging.getLogger(__name__)

Row = dict[str, Any]

_POLL_S = 0.1
_PATIENCE_S = 60.0  # at least; a batch of another process takes about as long as one of this process
_PATIENCE_BATCHES = 10


@dataclass
class Journal:
    """Rows by what they were made from. One line of a file is one batch of cases under one condition.

    Several processes can share the batches: each measures every ``world_size``-th one, and writes a file of its own.

    Attributes:
        file: the file of the first process; a line that was not written to its end is ignored.
        process: this process.
    """

    file: Path
    process: Process = field(default_factory=Process)
    _rows: dict[str, list[Row]] = field(init=False, default_factory=dict)
    _num_shared: int = field(init=False, default=0)
    _longest_s: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        for file in self._files():  # also of a run with another number of processes
            self._read(file)

    def rows(self, made_from: Mapping[str, Any], make: Callable[[], list[Row]]) -> tuple[list[Row], bool]:
        """The rows made from these things, measured now unless a file has them.

        Args:
            made_from: everything that the rows depend on.
            make: measures them.

        Returns:
            The rows, and whether they were measured now.
        """
        key = checksum_of([dict(made_from)])
        if key in self._rows:
            return self._rows[key], False
        start = time.monotonic()
        rows = self._rows[key] = make()
        self._longest_s = max(self._longest_s, time.monotonic() - start)
        file = self._file_of(self.process.rank)
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as stream:
            stream.write("\n" + json.dumps({"made_from": key, "rows": rows}))
        return rows, True

    def shared_rows(self, made_from: Mapping[str, Any], make: Callable[[], list[Row]]) -> tuple[list[Row], bool]:
        """As :meth:`rows`, but measured by one of the processes, which all call this in the same order.

        The first process waits for the rows of the others, and measures them itself if they do not come. The others
        get no rows but their own.
        """
        rank, self._num_shared = self._num_shared % self.process.world_size, self._num_shared + 1
        if rank == self.process.rank:
            return self.rows(made_from, make)
        if self.process.rank:
            return [], False
        self._wait(checksum_of([dict(made_from)]), rank)
        return self.rows(made_from, make)

    def remove(self) -> None:
        """Delete the files, and forget their rows."""
        self._rows.clear()
        for file in self._files() if self.process.rank == 0 else [self._file_of(self.process.rank)]:
            file.unlink(missing_ok=True)

    def _wait(self, key: str, rank: int) -> None:
        """Wait until another process has written rows."""
        patience_s, start = max(_PATIENCE_S, _PATIENCE_BATCHES * self._longest_s), time.monotonic()
        while key not in self._rows:
            self._read(self._file_of(rank))
            if key in self._rows:
                return
            if time.monotonic() - start > patience_s:
                logger.warning("rank %d has not measured its batch; this process measures it", rank)
                return
            time.sleep(_POLL_S)

    def _files(self) -> list[Path]:
        return sorted(self.file.parent.glob(f"{self.file.stem}*{self.file.suffix}"))

    def _file_of(self, rank: int) -> Path:
        return self.file if rank == 0 else self.file.with_name(f"{self.file.stem}_{rank}{self.file.suffix}")

    def _read(self, file: Path) -> None:
        for line in file.read_text().splitlines() if file.is_file() else []:
            with contextlib.suppress(ValueError):  # a run was killed while it wrote the line, or is writing it
                entry = json.loads(line)
                self._rows[entry["made_from"]] = entry["rows"]
