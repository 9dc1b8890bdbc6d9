"""The result of a command as HTML, for notebooks and pages."""

from __future__ import annotations

import base64
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from monai_diffae.apps.results import CommandResult

_PICTURE = '<img src="{source}" alt="{name}" style="max-width: 100%">'


def embedded(picture: Path) -> str:
    """A picture as a ``data:`` address, which needs no file beside the page."""
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"


def result_html(result: CommandResult, address: Callable[[Path], str] = embedded) -> str:
    """The lines, the table and the pictures of a result."""
    lines = "\n".join(result.lines())
    parts = [f'<pre style="line-height: 1.25">{escape(lines)}</pre>'] if lines else []
    table = result.preview()
    if table is not None:
        parts.append(table.to_html(index=False, border=0, float_format="{:.3g}".format, na_rep=""))
    parts += [_PICTURE.format(source=escape(address(file)), name=escape(file.stem)) for file in result.pictures()]
    return "\n".join(parts)
