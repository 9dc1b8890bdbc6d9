"""A section of the page, and the pieces of HTML that several sections use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from monai_diffae.apps.steps import Outcome
from monai_diffae.apps.web_page import joined

_SECTION = Markup(
    '<section aria-labelledby="{key}-title"><details class="card" open id="{key}">'
    '<summary><h2 id="{key}-title">{title}</h2></summary>\n<p class="lead">{lead}</p>\n{content}\n{commands}'
    "</details></section>"
)
_COMMANDS = Markup('<details class="command"><summary>{summary}</summary>{lines}</details>')
_LINE = Markup(
    '<div class="copied"><pre class="line">{}</pre><button type="button" class="screen-only">Copy</button></div>'
)


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
        key: its anchor.
        title: its heading.
        lead: one or two sentences: what is shown, and how to read it.
        content: its HTML.
        lines: the commands that made it, as lines for a shell.
    """

    key: str
    title: str
    lead: str
    content: Markup
    lines: Sequence[str] = ()

    def html(self) -> Markup:
        """The section as HTML."""
        commands = Markup()
        if self.lines:
            summary = "Made by this command" if len(self.lines) == 1 else f"Made by these {len(self.lines)} commands"
            commands = _COMMANDS.format(summary=summary, lines=joined([_LINE.format(line) for line in self.lines]))
        return _SECTION.format(key=self.key, title=self.title, lead=self.lead, content=self.content, commands=commands)


def omitted(outcome: Outcome | None) -> Markup:
    """One line that says why a step has no result; empty if it has one, or if there was no such step."""
    if outcome is None or outcome.result is not None:
        return Markup()
    return Markup('<p class="warning">Omitted: {}</p>').format(outcome.error)


def table(rows: Sequence[Mapping[str, Any]], caption: str = "", text_columns: int = 1) -> Markup:
    """A table with the keys of the first row as its head.

    Args:
        rows: the cells; HTML stays, None is an empty cell, and other values are escaped.
        caption: what the table shows.
        text_columns: the number of columns, from the first, that hold text.
    """
    head = joined([_cell("th", name, i < text_columns) for i, name in enumerate(rows[0])], "")
    body = joined([joined(["<tr>", ""], "") if not row else _row(row, text_columns) for row in rows])
    title = Markup("<caption>{}</caption>").format(caption) if caption else Markup()
    return Markup(
        '<div class="scroll" tabindex="0" role="region" aria-label="{}"><table>{}<thead><tr>{}</tr></thead>'
        "<tbody>{}</tbody></table></div>"
    ).format(caption or "Table", title, head, body)


def facts(values: Mapping[str, Any]) -> Markup:
    """Names with their values; those that are None are left out."""
    item = Markup("<div><dt>{}</dt><dd>{}</dd></div>")
    items = [item.format(name, value) for name, value in values.items() if value is not None]
    return Markup('<dl class="facts">{}</dl>').format(joined(items))


def number(value: float | None, digits: int = 3) -> str:
    """A number with some significant digits; a dash if there is none.

    Example:
        >>> number(0.98765), number(12345.6), number(None)
        ('0.988', '12,346', '–')
    """
    if value is None or value != value:  # NaN
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def _row(row: Mapping[str, Any], text_columns: int) -> Markup:
    cells = [_cell("th" if i == 0 else "td", value, i < text_columns) for i, value in enumerate(row.values())]
    return Markup("<tr>{}</tr>").format(joined(cells, ""))


def _cell(tag: str, value: Any, is_text: bool) -> Markup:
    attribute = Markup(' class="text"') if is_text else Markup()
    return Markup("<{0}{1}>{2}</{0}>").format(tag, attribute, "" if value is None else value)
