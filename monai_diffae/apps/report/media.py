"""Pictures of a page: linked beside it, or embedded in it and scaled down until the page is small enough."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup
from PIL import Image

from monai_diffae.apps.results import finished, run_once
from monai_diffae.errors import ConfigError


@dataclass(frozen=True)
class Media:
    """How a page refers to pictures.

    Attributes:
        folder: the page's folder.
        is_embedded: whether pictures are copied into the page.
        scale: the size of embedded pictures, as a fraction of their own size.
    """

    folder: Path
    is_embedded: bool = False
    scale: float = 1.0

    def address(self, file: Path) -> str:
        """The address of a picture: its path from the page, or a ``data:`` address with its content."""
        if not self.is_embedded:
            return quote(Path(os.path.relpath(file, self.folder)).as_posix())
        kind, content = f"image/{file.suffix[1:]}", file.read_bytes()
        if self.scale < 1:
            kind, content = "image/webp", _scaled(file, self.scale)
        return f"data:{kind};base64,{base64.b64encode(content).decode()}"

    def picture(self, file: Path, text: str) -> Markup:
        """A picture in the page.

        Args:
            file: the picture.
            text: what it shows, for readers who cannot see it.
        """
        with Image.open(file) as image:
            width, height = image.size
        html = Markup('<img class="picture" loading="lazy" src="{}" alt="{}" width="{}" height="{}">')
        return html.format(self.address(file), text, width, height)


def make_once(
    record: Path, files: Sequence[Path], made_from: Mapping[str, Any], make: Callable[[], Mapping[str, Any]], *,
    overwrite: bool,
) -> dict[str, Any]:  # fmt: skip
    """Make pictures of the page unless they are there; those made from other things are replaced.

    The arguments are those of :func:`~monai_diffae.apps.results.run_once`.

    Returns:
        The figures of the record.
    """
    try:
        finished(record, files, made_from, overwrite=overwrite)
    except ConfigError:
        overwrite = True
    return run_once(record, files, made_from, make, overwrite=overwrite)[0]


def _scaled(file: Path, scale: float) -> bytes:
    with Image.open(file) as image:
        size = [max(1, round(length * scale)) for length in image.size]
        smaller = image.convert("RGB").resize((size[0], size[1]), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    smaller.save(content, "webp", quality=80)
    return content.getvalue()
