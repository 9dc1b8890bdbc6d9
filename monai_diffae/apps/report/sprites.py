"""Sprites: many small pictures in one file, of which the page shows one at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from monai_diffae.data.atomic import write_atomic

Pixels = NDArray[np.uint8]

_LEAST_SIDE = 128

_SPRITE = Markup(
    '<span class="sprite" role="img" aria-label="{text}" data-count="{count}" data-columns="{columns}" '
    'style="background-image:{source};background-size:{columns}00% {rows}00%;background-position:{place};'
    'aspect-ratio:{aspect:.4f}"></span>'
)


@dataclass(frozen=True)
class Grid:
    """How frames lie in a sprite: row by row.

    Attributes:
        count: number of frames.
        columns: frames in a row.
    """

    count: int
    columns: int

    @property
    def rows(self) -> int:
        """The number of rows."""
        return -(-self.count // self.columns)

    def place(self, frame: int) -> str:
        """The CSS ``background-position`` that shows a frame.

        Example:
            >>> Grid(6, 3).place(4)
            '50% 100%'
        """
        row, column = divmod(frame, self.columns)
        return f"{_percent(column, self.columns)} {_percent(row, self.rows)}"


def square_grid(count: int) -> Grid:
    """A grid of about as many rows as columns."""
    return Grid(count, math.ceil(math.sqrt(count)))


def write_sprite(frames: Pixels | Sequence[Pixels], grid: Grid, file: Path) -> Path:
    """Write frames ``[N, H, W, 3]`` into one picture, a WebP."""
    height, width = frames[0].shape[:2]
    canvas = np.zeros((grid.rows * height, grid.columns * width, 3), np.uint8)
    for i, frame in enumerate(frames):
        row, column = divmod(i, grid.columns)
        canvas[row * height : (row + 1) * height, column * width : (column + 1) * width] = frame
    image = Image.fromarray(canvas)
    return write_atomic(file, lambda temporary: image.save(temporary, "webp", quality=88))


def enlarged(frames: Pixels) -> list[Pixels]:
    """Frames ``[N, H, W, 3]`` of at least 128 pixels, interpolated, so that small images do not look like mosaics."""
    height, width = frames.shape[1:3]
    factor = max(1.0, _LEAST_SIDE / max(height, width))
    size = (round(width * factor), round(height * factor))
    return [np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)) for frame in frames]


def sprite(source: str, grid: Grid, text: str, *, frame: int = 0, aspect: float = 1.0) -> Markup:
    """One frame of a sprite as HTML; a script can show other frames.

    Args:
        source: a CSS image: ``url(...)`` or ``var(...)``.
        grid: how the frames lie.
        text: what is shown, for readers who cannot see it.
        frame: which frame.
        aspect: width over height of a frame.
    """
    return _SPRITE.format(
        text=text,
        count=grid.count,
        columns=grid.columns,
        rows=grid.rows,
        source=source,
        place=grid.place(frame),
        aspect=aspect,
    )


def _percent(index: int, count: int) -> str:
    return f"{100 * index / max(count - 1, 1):.6g}%"
