"""Grids of small captioned images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from monai_diffae.pictures.mosaic import three_planes

_INCHES = 1.4


def draw_cells(
    rows: Sequence[Iterable[tuple[Tensor | None, str]]], path: Path, model_range: tuple[float, float]
) -> None:
    """Draw rows of images, each with a caption of one or several lines above it.

    Args:
        rows: images (C, *S) with their captions; volumes are shown in three planes, and None leaves the cell empty.
        path: the PNG.
        model_range: black and white.
    """
    from matplotlib.figure import Figure  # not pyplot, which keeps figures and needs a display

    cells = [[(None if image is None else _pixels(image, model_range), text) for image, text in row] for row in rows]
    height, width = next((pixels.shape[:2] for row in cells for pixels, _ in row if pixels is not None), (1, 1))
    num_lines = max(len(text.split("\n")) for row in cells for _, text in row)
    size = (_INCHES * len(cells[0]) * width / height, (_INCHES + 0.1 + 0.15 * num_lines) * len(cells))
    figure = Figure(figsize=size, layout="constrained")
    for panels, row in zip(figure.subplots(len(cells), len(cells[0]), squeeze=False), cells, strict=True):
        for panel, (pixels, text) in zip(panels, row, strict=True):
            panel.set_title(text, fontsize=9, parse_math=False)
            panel.axis("off")
            if pixels is not None:
                panel.imshow(pixels, interpolation="nearest")
    figure.savefig(path, dpi=120, format="png")


def _pixels(image: Tensor, model_range: tuple[float, float]) -> NDArray[np.float32]:
    """The pixels (H, W, 3) of an image, from 0 to 1."""
    low, high = model_range
    images = (image.as_subclass(Tensor)[None].float() - low) / (high - low)
    images = three_planes(images) if images.ndim == 5 else images
    images = images if images.shape[1] == 3 else images[:, :1].expand(-1, 3, -1, -1)
    return images[0].clamp(0, 1).permute(1, 2, 0).numpy()
