"""The page of a report: a heading, figures at a glance, a list of contents, and the sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from monai_diffae.apps.report.sections import Section
from monai_diffae.apps.web_page import MAP_SCRIPTS, joined, web_page

_HERE = Path(__file__).parent

_BODY = Markup(
    '<a class="skip" href="#content">Skip to the report</a><div class="layout">\n'
    '<nav class="screen-only" aria-label="Sections"><ol>{links}</ol>'
    '<button type="button" id="toggle">Close all sections</button></nav>\n'
    '<main id="content"><header><p class="eyebrow">{eyebrow}</p><h1>{title}</h1>\n'
    '<p class="notice">{notice}</p>\n<dl class="tiles">{tiles}</dl></header>\n{sections}\n'
    "<footer>{footer}</footer></main></div>"
)
_NOTICE = (
    "Research software, not for clinical use. This page contains images of patients: handle it as you handle the "
    "scans. Reconstructions, edits and samples are synthetic images. The page sends nothing, and works "
    "without a network."
)


@dataclass(frozen=True)
class Page:
    """The content of a page.

    Attributes:
        eyebrow: a line above the heading.
        title: the heading.
        tiles: figures at a glance: a name, and a figure with a remark.
        sections: the sections, in order.
        style: further style, such as the addresses of thumbnails.
        footer: a line at the end.
    """

    eyebrow: str
    title: str
    tiles: Mapping[str, tuple[str, str]]
    sections: Sequence[Section]
    style: Markup
    footer: str

    def html(self) -> str:
        """The whole page."""
        link = Markup('<li><a href="#{}">{}</a></li>')
        tile = Markup("<div><dt>{}</dt><dd>{}<small>{}</small></dd></div>")
        values: dict[str, Any] = {
            "links": joined([link.format(section.key, section.title) for section in self.sections]),
            "tiles": joined([tile.format(name, *value) for name, value in self.tiles.items()]),
            "sections": joined([section.html() for section in self.sections]),
        }
        body = _BODY.format(eyebrow=self.eyebrow, title=self.title, notice=_NOTICE, footer=self.footer, **values)
        scripts = [*MAP_SCRIPTS, _HERE / "page.js", _HERE / "map.js"]
        return web_page(self.title, joined([self.style, body]), [_HERE / "page.css"], scripts)
