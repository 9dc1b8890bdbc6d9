"""HTML pages from the templates: one style sheet, one map, and pictures that are linked or embedded."""

from __future__ import annotations

import base64
import io
import logging
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from monai_diffae.data.atomic import write_atomic

logger = logging.getLogger(__name__)

TEMPLATES = Path(__file__).with_name("templates")
# The style sheet and the map of cases, which the page of ``explore`` uses, too
SHARED = ("style.css", "case_colours.js", "case_map.js")

_SCALES = (1.0, 0.75, 0.5, 0.35, 0.25)


@dataclass(frozen=True)
class Pictures:
    """How a page in a folder refers to pictures: by links, or copied into it and scaled."""

    folder: Path
    is_embedded: bool = False
    scale: float = 1.0

    def address(self, file: Path) -> str:
        """The address of a picture: its path from the page, or a ``data:`` address with its content."""
        if not self.is_embedded:
            return quote(Path(os.path.relpath(file, self.folder)).as_posix())
        if self.scale == 1:
            return data_address(file.read_bytes(), file.suffix[1:])
        with Image.open(file) as image:
            size = [max(1, round(length * self.scale)) for length in image.size]
            smaller = image.convert("RGB").resize((size[0], size[1]), Image.Resampling.LANCZOS)
        content = io.BytesIO()
        smaller.save(content, "webp", quality=80)
        return data_address(content.getvalue(), "webp")


def data_address(content: bytes, kind: str = "png") -> str:
    """A picture as a ``data:`` address, which needs no file beside the page."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def number(value: float | None, digits: int = 3) -> str:
    """A number with some significant digits, such as 0.988 or 12,346; a dash if there is none."""
    if value is None or value != value:  # NaN
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def source(name: str) -> Markup:
    """A style sheet or script of the templates' folder."""
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))  # noqa: S704, a file of this package


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters["number"] = number
    environment.globals["source"] = source
    return environment


def render(template: str, **values: Any) -> str:
    """Fill a template; texts among the values are escaped."""
    return _environment().get_template(template).render(values)


def write_page(file: Path, template: str, *, embed: bool = False, most_bytes: int = 15_000_000, **values: Any) -> Path:
    """Write a page; embedded pictures are scaled down, with a warning, until it can be sent by mail."""
    for scale in _SCALES if embed else (1.0,):
        html = render(template, **values, address=Pictures(file.parent, embed, scale).address)
        size = len(html.encode())
        if size < most_bytes:
            break
    if scale < 1:
        advice = "; to send it, omit embed and send the folder, or use a smaller cohort" if size >= most_bytes else ""
        text = "%s: has %.1f MB (at most %.0f can be sent), with its pictures scaled to %.0f %% of their size%s"
        logger.warning(text, file.name, size / 1e6, most_bytes / 1e6, 100 * scale, advice)
    return write_atomic(file, lambda temporary: temporary.write_text(html, encoding="utf-8"))
