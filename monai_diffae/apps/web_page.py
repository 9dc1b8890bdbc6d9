"""HTML pages that need no other file and no network: the common style, and the frame of a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup, escape

STYLE = Path(__file__).with_name("page_style.css")
"""The style sheet that all our pages share."""
MAP_SCRIPTS = (STYLE.with_name("case_colours.js"), STYLE.with_name("case_map.js"))
"""The map of z_sem, for the pages that have one."""

_PAGE = Markup(
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    '<meta name="referrer" content="no-referrer"><link rel="icon" href="data:,">\n'
    "<style>{style}</style></head>\n<body>{body}{scripts}</body></html>\n"
)


def web_page(title: str, body: Markup, styles: Sequence[Path] = (), scripts: Sequence[Path] = ()) -> str:
    """A whole page with the common style; the style sheets and JavaScript files are copied into it.

    Example:
        >>> "<title>a &lt; b</title>" in web_page("a < b", Markup("<main>c</main>"))
        True
    """
    style = Markup("\n").join(Markup(_text(file)) for file in (STYLE, *styles))  # noqa: S704, files of this package
    codes = [Markup(_text(file)) for file in scripts]  # noqa: S704, files of this package
    code = Markup("").join(Markup("\n<script>\n{}</script>").format(text) for text in codes)
    return _PAGE.format(title=title, style=style, body=body, scripts=code)


def joined(parts: Sequence[str], separator: str = "\n") -> Markup:
    """Pieces of HTML after each other; plain texts among them are escaped."""
    return escape(separator).join(parts)


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")
