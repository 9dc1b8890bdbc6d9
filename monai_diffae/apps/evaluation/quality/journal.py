"""Rows that were measured already, kept in a file, so that an interrupted evaluation resumes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai_diffae.apps.results import checksum_of

Row = dict[str, Any]


@dataclass
class Journal:
    """Rows by what they were made from. One line of the file is one batch of cases under one condition.

    Attributes:
        file: the file; a line that was not written to its end is ignored.
    """

    file: Path
    _rows: dict[str, list[Row]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        for line in self.file.read_text().splitlines() if self.file.is_file() else []:
            with contextlib.suppress(ValueError):  # a run was killed while it wrote the line
                entry = json.loads(line)
                self._rows[entry["made_from"]] = entry["rows"]

    def rows(self, made_from: Mapping[str, Any], make: Callable[[], list[Row]]) -> tuple[list[Row], bool]:
        """The rows made from these things, measured now unless the file has them.

        Args:
            made_from: everything that the rows depend on.
            make: measures them.

        Returns:
            The rows, and whether they were measured now.
        """
        key = checksum_of([dict(made_from)])
        if key in self._rows:
            return self._rows[key], False
        rows = self._rows[key] = make()
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a") as file:
            file.write("\n" + json.dumps({"made_from": key, "rows": rows}))
        return rows, True

    def remove(self) -> None:
        """Delete the file, and forget its rows."""
        self._rows.clear()
        self.file.unlink(missing_ok=True)
