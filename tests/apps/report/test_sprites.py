"""Each frame of a sprite is shown at its place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from monai_diffae.apps.report.sprites import Grid, enlarged, sprite, square_grid, write_sprite


def test_frames_lie_row_by_row(tmp_path: Path) -> None:
    frames = np.stack([np.full((8, 16, 3), 50 * i, np.uint8) for i in range(5)])
    grid = square_grid(5)
    image = Image.open(write_sprite(frames, grid, tmp_path / "s.webp"))
    assert image.size == (16 * grid.columns, 8 * grid.rows)
    for i in range(5):
        row, column = divmod(i, grid.columns)
        assert abs(image.convert("RGB").getpixel((16 * column + 8, 8 * row + 4))[0] - 50 * i) < 4


@settings(deadline=None)
@given(st.integers(1, 300))
def test_the_places_of_frames_are_those_of_css(count: int) -> None:
    """CSS puts the point at p % of the picture on the point at p % of the box."""
    grid = square_grid(count)
    assert grid.columns * grid.rows >= count
    for frame in {0, count // 2, count - 1}:
        x, y = (float(part.rstrip("%")) / 100 for part in grid.place(frame).split())
        left, top = x * (grid.columns - 1), y * (grid.rows - 1)
        assert round(top) * grid.columns + round(left) == frame


def test_small_frames_are_enlarged_and_large_ones_stay() -> None:
    assert enlarged(np.zeros((2, 16, 32, 3), np.uint8))[0].shape == (64, 128, 3)
    assert enlarged(np.zeros((2, 200, 100, 3), np.uint8))[0].shape == (200, 100, 3)


def test_a_sprite_has_a_name() -> None:
    assert 'aria-label="a &amp; b"' in sprite("url(a.webp)", Grid(4, 2), "a & b")
