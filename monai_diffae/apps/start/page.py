"""The page that ``start`` ends with: what was done, by which commands, what came out, and what to do next."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup

from monai_diffae.apps.result_html import result_html
from monai_diffae.apps.steps import Outcome
from monai_diffae.apps.web_page import joined, web_page
from monai_diffae.data.atomic import write_atomic

_BODY = Markup(
    "<main><h1>{title}</h1>\n"
    "<p>Research software, not for clinical use. Edits and reconstructions are synthetic images.</p>\n"
    "<pre>{about}</pre>\n{results}\n<h2>How this was made</h2>\n{preparations}\n<h2>Next</h2>{next_lines}</main>"
)
_SECTION = Markup(
    '<details{open}><summary>{step.title} ({seconds:.0f} s)</summary><pre class="line">{step.line}</pre>'
    "{content}</details>"
)

_MOST_WARNINGS = 5  # that are shown of a step


def write_page(
    file: Path, title: str, about: Sequence[str], outcomes: Sequence[Outcome], next_lines: Sequence[tuple[str, str]]
) -> Path:
    """Write the page; it links the pictures, which stay where the commands wrote them.

    Args:
        file: the page, ``.html``.
        title: its heading.
        about: lines about the cohort and the plan.
        outcomes: of the steps; results come first on the page, preparations are folded.
        next_lines: what can be done next: an explanation, and the line for a shell.
    """

    def address(path: Path) -> str:
        return quote(Path(os.path.relpath(path, file.parent)).as_posix())

    def sections(*, are_preparations: bool) -> Markup:
        shown = [outcome for outcome in outcomes if outcome.step.is_preparation == are_preparations]
        return joined([_section(outcome, address, is_open=not are_preparations) for outcome in shown])

    line = Markup('<p>{}</p><pre class="line">{}</pre>')
    body = _BODY.format(
        title=title,
        about="\n".join(about),
        results=sections(are_preparations=False),
        preparations=sections(are_preparations=True),
        next_lines=joined([line.format(why, text) for why, text in next_lines]),
    )
    html = web_page(title, body)
    return write_atomic(file, lambda temporary: temporary.write_text(html, encoding="utf-8"))


def _section(outcome: Outcome, address: Callable[[Path], str], *, is_open: bool) -> Markup:
    num_more = len(outcome.warnings) - _MOST_WARNINGS
    warnings = [*outcome.warnings[:_MOST_WARNINGS], *([f"and {num_more} more warnings"] if num_more > 0 else [])]
    content = joined([Markup('<p class="warning">{}</p>').format(text) for text in warnings])
    if outcome.error is not None:
        content += Markup('<p class="error">Omitted: {}</p>').format(outcome.error)
    elif outcome.result is None:
        content += Markup("<p>Done by an earlier call.</p>")
    else:
        content += Markup(result_html(outcome.result, address))  # noqa: S704, which escapes its texts
    opened = Markup(" open") if is_open else ""
    return _SECTION.format(open=opened, step=outcome.step, seconds=outcome.seconds, content=content)
