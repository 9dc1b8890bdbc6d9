"""The rows that ``evaluate`` has measured, in parts on disk: an interrupted run resumes, processes share the work."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_diffae.data.fingerprints import json_digest
from monai_diffae.lazy import pd

if TYPE_CHECKING:
    from monai_diffae.apps.evaluation.quality_tables import Row
    from monai_diffae.apps.processes import Process

logger = logging.getLogger(__name__)

_POLL_S = 0.1
_PATIENCE_S = 60.0  # at least; a batch of another process takes about as long as one of this process
_PATIENCE_BATCHES = 10


class MeasuredRows:
    """Rows by what they were made from, and by ``settings`` of all; ``advance`` moves a bar by one evaluation."""

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], process: Process, advance: Callable[[], None], overwrite: bool
    ) -> None:
        from monai_diffae.data.atomic import PartStore

        self._settings, self._process, self._advance = settings, process, advance
        self._store = PartStore(folder, "evaluate", process=process.rank)
        if overwrite and process.rank == 0:
            self._store.remove()
        self._done = self._read()
        self._num_shared, self._longest_s = 0, 0.0

    def rows(
        self, made_from: Mapping[str, Any], make: Callable[[], list[Row]], num_evaluations: int, *, shared: bool = False
    ) -> list[Row]:
        """The rows made from these things, measured now unless they are on disk.

        Shared rows are measured by one of the processes, which all call this in the same order. The first one waits for
        those of the others, and measures them itself if they do not come; the others get no rows but their own.
        """
        key = json_digest([dict(self._settings), dict(made_from)])
        if shared:
            rank, self._num_shared = self._num_shared % self._process.world_size, self._num_shared + 1
            if rank != self._process.rank:
                if self._process.rank:
                    return []
                self._wait(key, rank)
        if key not in self._done:
            start = time.monotonic()
            self._done[key] = make()
            self._longest_s = max(self._longest_s, time.monotonic() - start)
            self._store.append(pd.DataFrame({"id": [key], "rows": [json.dumps(self._done[key])]}))
        for _ in range(num_evaluations):
            self._advance()
        return self._done[key]

    def remove(self) -> None:
        """Delete the parts."""
        self._store.remove()

    def _wait(self, key: str, rank: int) -> None:
        patience_s, start = max(_PATIENCE_S, _PATIENCE_BATCHES * self._longest_s), time.monotonic()
        while key not in self._done:
            if key in self._store.done():
                self._done = self._read()
            elif time.monotonic() - start > patience_s:
                logger.warning("rank %d has not measured its batch; this process measures it", rank)
                return
            else:
                time.sleep(_POLL_S)

    def _read(self) -> dict[str, list[Row]]:
        table = self._store.read()
        pairs = () if table.empty else zip(table["id"], table["rows"], strict=True)
        return {key: json.loads(rows) for key, rows in pairs}
