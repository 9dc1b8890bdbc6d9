"""What a command made: one class for all commands."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from monai_diffae.apps.record import FILE_SUFFIXES
from monai_diffae.errors import CohortError, ConfigError
from monai_diffae.lazy import on_first_use

with on_first_use:
    import pandas as pd

    from monai_diffae.apps import html
    from monai_diffae.data import embeddings as tables

logger = logging.getLogger(__name__)


_TABLE_SUFFIXES = (".parquet", ".csv")
_MOST_SHOWN = 4  # columns of z_sem in a notebook
_MAX_WIDTH = 160  # columns of text tables; a table is only as wide as its text


@dataclass(frozen=True)
class Result:
    """What a command made, as a terminal, a notebook and ``--json`` show it.

    A result is also a path, so the next command takes it as it is. Each figure is an attribute, too.

    Example:
        >>> result = Result(Path("probed"), {"score": 0.9}, notes=["score 0.9"], next=["next: monai-diffae report"])
        >>> result.score, list(result.lines()), str(Path(result))
        (0.9, ['score 0.9', 'probed', 'next: monai-diffae report'], 'probed')
    """

    path: Path | None = None  #: the folder or file that the command wrote; None: it wrote nothing
    figures: Mapping[str, Any] = field(default_factory=dict)  #: plain values, for ``--json``
    notes: Sequence[str] = ()  #: lines for a terminal, which stand above the path
    incomplete: str | None = None  #: one line if some cases failed or were left out; the exit code is then 3
    next: Sequence[str] = ()  #: what usually follows, as lines for a terminal
    skipped: bool = False  #: whether the result was complete already
    content: Mapping[str, Any] = field(default_factory=dict, repr=False)  #: what only Python can use; also attributes

    @property
    def folder(self) -> Path:
        """The folder of the result; for a file, the one that it lies in."""
        path = Path(self)
        return path.parent if path.suffix in FILE_SUFFIXES else path

    def __getattr__(self, name: str) -> Any:
        for values in (self.__dict__.get("figures", {}), self.__dict__.get("content", {})):
            if name in values:
                return values[name]
        raise AttributeError(f"the result has no {name!r}")

    def __fspath__(self) -> str:
        if self.path is None:
            raise ConfigError("the command wrote no files, so its result is no path; set out")
        return str(self.path)

    def lines(self) -> Iterator[str]:
        """The lines for a terminal."""
        yield from self.notes
        if self.path is not None:
            yield str(self.path)
        yield from self.next

    def json(self) -> dict[str, Any]:
        """The plain values of ``--json``."""
        return {**({} if self.path is None else {"path": str(self.path)}), **self.figures}

    def pictures(self) -> list[Path]:
        """The pictures at the top of the result's folder, and the latest one of a training."""
        if self.path is None or self.path.suffix in FILE_SUFFIXES:
            return []
        return [*sorted(self.path.glob("*.png")), *self.path.glob("pictures/latest.png")]

    def preview(self) -> pd.DataFrame | None:
        """The first rows of a result that is a table, with a few columns of z_sem."""
        if self.path is None or self.path.suffix not in _TABLE_SUFFIXES:
            return None
        try:
            table = tables.read_embeddings(self.path).head()
        except CohortError:  # a table of scans
            return None
        return table.drop(columns=tables.z_columns(table)[_MOST_SHOWN:])

    def _repr_html_(self) -> str:
        return html.render("result.html", result=self, address=lambda file: html.data_address(file.read_bytes()))


def failed_cases(num_failed: int, num_cases: int, failures_name: str = "failures.csv") -> str | None:
    """The line of :attr:`Result.incomplete` about cases that failed, if there are any."""
    if not num_failed:
        return None
    return f"{num_failed} of {num_failed + num_cases} cases failed: see {failures_name}"


def table_lines(table: Table) -> Iterator[str]:
    """The lines of a table."""
    console = Console(file=StringIO(), width=_MAX_WIDTH, highlight=False, markup=False)
    with console.capture() as capture:
        console.print(table)
    yield from (line.rstrip() for line in capture.get().splitlines())
