"""The page that ``start`` ends with: what was done, by which commands, what came out, and what to do next."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from monai_diffae.apps.result_html import result_html
from monai_diffae.apps.steps import Outcome
from monai_diffae.data.atomic import write_atomic

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code, pre { font-family: ui-monospace, monospace; font-size: .85rem; }
pre { overflow-x: auto; padding: .6rem .8rem; background: color-mix(in srgb, currentColor 7%, transparent); }
pre.line { white-space: pre-wrap; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; background: #fff; margin: .3rem 0; }
table { border-collapse: collapse; font-size: .85rem; display: block; overflow-x: auto; }
td, th { padding: .15rem .6rem; text-align: right; }
details { border-top: 1px solid color-mix(in srgb, currentColor 25%, transparent); padding: .6rem 0; }
summary { font-weight: 600; font-size: 1.1rem; cursor: pointer; }
.error { color: #b3261e; }
@media (prefers-color-scheme: dark) { .error { color: #ff8a80; } }
"""


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

    results = [outcome for outcome in outcomes if not outcome.step.is_preparation]
    preparations = [outcome for outcome in outcomes if outcome.step.is_preparation]
    next_steps = "".join(f'<p>{escape(why)}</p><pre class="line">{escape(line)}</pre>' for why, line in next_lines)
    body = [
        f"<h1>{escape(title)}</h1>",
        "<p>Research software, not for clinical use. Edits and reconstructions are synthetic images.</p>",
        f"<pre>{escape(chr(10).join(about))}</pre>",
        *(_section(outcome, address, is_open=True) for outcome in results),
        "<h2>How this was made</h2>",
        *(_section(outcome, address, is_open=False) for outcome in preparations),
        f"<h2>Next</h2>{next_steps}",
    ]
    head = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
    )
    html = f"{head}<body>{chr(10).join(body)}</body></html>"
    return write_atomic(file, lambda temporary: temporary.write_text(html, encoding="utf-8"))


def _section(outcome: Outcome, address: Callable[[Path], str], *, is_open: bool) -> str:
    step = outcome.step
    if outcome.result is None:
        content = f'<p class="error">Omitted: {escape(outcome.error or "")}</p>'
    else:
        content = result_html(outcome.result, address)
    return (
        f"<details{' open' if is_open else ''}><summary>{escape(step.title)} ({outcome.seconds:.0f} s)</summary>"
        f'<pre class="line">{escape(step.line)}</pre>{content}</details>'
    )
