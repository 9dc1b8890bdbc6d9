"""Thumbnails of cases in a few atlases, written once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from monai_diffae.apps.report.media import Media, make_once
from monai_diffae.apps.report.sprites import Grid, Pixels, sprite, write_sprite
from monai_diffae.apps.results import checksum_of
from monai_diffae.apps.web_page import joined

MOST_THUMBNAILS = 2048

_CELL, _COLUMNS, _IN_ATLAS = 96, 32, 1024


@dataclass(frozen=True)
class Thumbnails:
    """The thumbnails of cases.

    Attributes:
        ids: the cases, in the order of the thumbnails.
        files: the atlases, with 1024 thumbnails each.
        prefix: the prefix of the CSS variables that hold the atlases' addresses.
    """

    ids: Sequence[str] = ()
    files: Sequence[Path] = ()
    prefix: str = "thumbnails"

    def style(self, media: Media) -> Markup:
        """A style sheet with the addresses of the atlases, so that each is in the page once."""
        rules = [
            Markup('--{}-{}:url("{}");').format(self.prefix, i, media.address(file))
            for i, file in enumerate(self.files)
        ]
        return Markup("<style>:root{{{}}}</style>").format(joined(rules, ""))

    def picture(self, case_id: str, text: str = "") -> Markup:
        """The thumbnail of a case as HTML; an empty frame if it has none."""
        if case_id not in self.places:
            return Markup('<span class="sprite missing" role="img" aria-label="{}: no image"></span>').format(case_id)
        atlas, frame = divmod(self.places[case_id], _IN_ATLAS)
        return sprite(f"var(--{self.prefix}-{atlas})", self.grid(atlas), text or case_id, frame=frame)

    @property
    def places(self) -> Mapping[str, int]:
        """The number of each case's thumbnail."""
        return {name: i for i, name in enumerate(self.ids)}

    def grid(self, atlas: int) -> Grid:
        """How the thumbnails lie in an atlas."""
        return Grid(min(len(self.ids) - atlas * _IN_ATLAS, _IN_ATLAS), _COLUMNS)

    def figures(self) -> dict[str, Any]:
        """What a script needs to show a thumbnail."""
        return {
            "prefix": self.prefix, "in_atlas": _IN_ATLAS, "columns": _COLUMNS,
            "rows": [self.grid(i).rows for i in range(len(self.files))],
        }  # fmt: skip


@dataclass(frozen=True)
class Atlas:
    """Where thumbnails are written, and what they depend on.

    Attributes:
        folder: the folder for the atlases.
        name: the prefix of their names.
        made_from: what the thumbnails depend on beside their ids.
        overwrite: replace existing ones.
    """

    folder: Path
    name: str
    made_from: Mapping[str, Any]
    overwrite: bool = False


def make_thumbnails(
    atlas: Atlas, ids: Sequence[str], read: Callable[[Sequence[str]], Mapping[str, Pixels]]
) -> Thumbnails:
    """Write the thumbnails of cases unless they are there.

    Args:
        atlas: where they are written.
        ids: the cases; at most :data:`MOST_THUMBNAILS` of them, the first ones.
        read: reads pictures ``[H, W, 3]`` by id; it leaves out what cannot be read.
    """
    shown = list(dict.fromkeys(ids))[:MOST_THUMBNAILS]
    files = [atlas.folder / f"{atlas.name}_{i}.webp" for i in range(-(-len(shown) // _IN_ATLAS))]

    def make() -> Mapping[str, Any]:
        cells = {name: _cell(picture) for name, picture in read(shown).items()}
        size = max(len(cell) for cell in cells.values())
        empty = np.zeros((size, size, 3), np.uint8)
        for i, file in enumerate(files):
            part = [cells.get(name, empty) for name in shown[i * _IN_ATLAS : (i + 1) * _IN_ATLAS]]
            write_sprite(part, Grid(len(part), _COLUMNS), file)
        return {"num_images": len(cells)}

    made_from = {**atlas.made_from, "ids": checksum_of(shown)}
    make_once(atlas.folder / f"{atlas.name}.json", files, made_from, make, overwrite=atlas.overwrite)
    return Thumbnails(shown, files, atlas.name)


def _cell(frame: Pixels) -> Pixels:
    """A frame in the middle of a square of at most 96 pixels."""
    image = Image.fromarray(frame)
    side = min(_CELL, max(image.size))
    factor = side / max(image.size)
    smaller = image.resize((max(1, round(image.width * factor)), max(1, round(image.height * factor))))
    square = Image.new("RGB", (side, side))
    square.paste(smaller, ((side - smaller.width) // 2, (side - smaller.height) // 2))
    return np.asarray(square)
