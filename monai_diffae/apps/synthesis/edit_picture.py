"""The picture of ``edit``: edited cases in rows, and their differences in colour below them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from monai_diffae.apps.synthesis.strengths import strength_titles
from monai_diffae.data.atomic import write_atomic
from monai_diffae.pictures import draw_mosaic, in_colours
from monai_diffae.transforms import NativeSpace

NUM_PICTURED = 4

_PANEL_PX = 224  # per side of a 2D image, unless the model's images are larger
_LEAST_SCALE = 0.1  # end of the colour scale, as a fraction of the model's range: small differences should look small


class PicturedCase(NamedTuple):
    """The edited images of a case and their differences, (A, C, *S) in the model's range, one per strength."""

    images: Tensor
    differences: Tensor
    caption: str = ""


def own_detail(native: NativeSpace, differences: Tensor) -> tuple[Tensor, Tensor]:
    """The case with its own detail, and the differences added to it: a 2D image as fine as it is, up to 224 pixels.

    Args:
        native: the case. A volume is shown in the model's grid.
        differences: (A, C, *S) in the model's grid.

    Returns:
        The edited images and the differences, (A, C, *S') in the model's range.
    """
    image = native.image.as_tensor()
    if image.ndim != 3:
        return image + differences, differences
    pixels = max(_PANEL_PX, *image.shape[1:])
    scan = native.to_model_range(native.scan.array)
    changes = [native.to_model_range(native.add_difference(difference)) - scan for difference in differences]
    panels = torch.stack([_panel(change, pixels, 0.0) for change in changes])
    return _panel(scan, pixels, float(scan.min())) + panels, panels


def _panel(array: NDArray[np.float32], pixels: int, background: float) -> Tensor:
    """An image ``[C, *S]``, scaled to fit into a square (C, pixels, pixels); an enlarged one shows its pixels."""
    height, width = (max(1, round(size * pixels / max(array.shape[1:]))) for size in array.shape[1:])
    image = torch.from_numpy(array)[None].float()
    is_smaller = max(array.shape[1:]) <= pixels
    options = {"mode": "nearest-exact"} if is_smaller else {"mode": "bilinear", "antialias": True}
    image = nn.functional.interpolate(image, (height, width), **options)[0]
    left, top = (pixels - width) // 2, (pixels - height) // 2
    return nn.functional.pad(image, (left, pixels - width - left, top, pixels - height - top), value=background)


def draw_edits(
    path: Path,
    cases: Sequence[PicturedCase],
    strengths: Sequence[float],
    model_range: tuple[float, float],
) -> None:
    """Draw edited images, and below them their differences in colour.

    Args:
        path: the file, ``.png``.
        cases: the cases; A images and differences each.
        strengths: the titles of the A columns.
        model_range: black and white.
    """
    low, high = model_range
    limit = max(_LEAST_SCALE * (high - low), *(float(case.differences.abs().max()) for case in cases))
    rows: dict[str, Tensor] = {}
    for i, case in enumerate(cases, start=1):
        rows["\n".join(filter(None, [f"case {i}", case.caption]))] = case.images
        rows[f"difference {i} (±{limit:.2g})"] = in_colours(case.differences, limit, model_range=model_range)
    write_atomic(path, lambda temporary: draw_mosaic(rows, temporary, model_range, strength_titles(strengths)))
