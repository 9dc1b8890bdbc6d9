"""The tables of an evaluation on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table

from monai_diffae.apps.evaluation.quality.journal import Row
from monai_diffae.apps.evaluation.quality.report_files import TABLES, short, wide_lines
from monai_diffae.apps.text_tables import table_lines


def result_lines(rows: Sequence[Row]) -> Iterator[str]:
    """Each table with its title, without intervals, which are in the files."""
    for name, title in TABLES.items():
        lines = wide_lines(rows, name)
        if not lines:
            continue
        columns = [c for c in dict.fromkeys(c for line in lines for c in line) if not c.endswith(("_low", "_high"))]
        table = Table(*columns, box=None)
        for line in lines:
            table.add_row(*("" if line.get(column) is None else short(line[column]) for column in columns))
        yield title
        yield from table_lines(table)
        yield ""
