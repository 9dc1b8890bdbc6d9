"""Tables of rich as lines of text, for the results of commands."""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

_MAX_WIDTH = 160  # columns; a table is only as wide as its text


def table_lines(table: Table) -> Iterator[str]:
    """The lines of a table.

    Example:
        >>> from rich.table import Table
        >>> table = Table("name", "value", box=None)
        >>> table.add_row("loss", "0.5")
        >>> [line.split() for line in table_lines(table)]
        [['name', 'value'], ['loss', '0.5']]
    """
    from rich.console import Console

    console = Console(file=StringIO(), width=_MAX_WIDTH, highlight=False, markup=False)
    with console.capture() as capture:
        console.print(table)
    yield from (line.rstrip() for line in capture.get().splitlines())
