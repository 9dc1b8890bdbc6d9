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
from monai_diffae.data.scans import Scan
from monai_diffae.data.slices import to_ras
from monai_diffae.pictures import draw_mosaic, in_colours
from monai_diffae.pictures.mosaic import three_planes
from monai_diffae.transforms import NativeSpace

NUM_PICTURED = 4

_PANEL_PX, _PLANE_PX = 224, 112  # per side of a 2D image and of a plane of a volume, or the model's if it is larger
_LEAST_SCALE = 0.1  # end of the colour scale, as a fraction of the model's range: small differences should look small


class PicturedCase(NamedTuple):
    """The edited images of a case, or pictures of them, and their differences, (A, C, *S) in the model's range."""

    images: Tensor
    differences: Tensor
    caption: str = ""


def own_detail(native: NativeSpace, differences: Tensor) -> tuple[Tensor, Tensor]:
    """The case with its own detail, and the differences added to it: pictures as fine as the scan, up to a size.

    Args:
        native: the case. A volume is shown in its three middle planes.
        differences: (A, C, *S) in the model's grid.

    Returns:
        The edited pictures and their differences, (A, C, H, W) in the model's range.
    """
    array = native.to_model_range(native.scan.array)
    edited = (native.storable(native.add_difference(difference)) for difference in differences)
    changes = [native.to_model_range(image) - array for image in edited]
    panels = torch.stack([_panel(change, native, 0.0) for change in changes])
    return _panel(array, native, float(array.min())) + panels, panels


def _panel(array: NDArray[np.float32], native: NativeSpace, background: float) -> Tensor:
    """A square picture (C, P, P) of an image, or (C, P, 3 P) of a volume, in whose corners is the background.

    Args:
        array: ``[C, *native S]``.
        native: the case.
        background: a value of ``array``.
    """
    size = native.image.shape[1:]
    if native.scan.spatial_dims == 2:
        return _fitted(array, array.shape[1:], max(_PANEL_PX, *size), background)
    volume = to_ras(Scan(array, native.scan.affine))
    lengths_mm = np.array(volume.array.shape[1:]) * np.linalg.norm(volume.affine[:3, :3], axis=0)
    fitted = _fitted(np.ascontiguousarray(volume.array), lengths_mm.tolist(), max(_PLANE_PX, *size), background)
    return three_planes(fitted[None])[0]


def _fitted(array: NDArray[np.float32], lengths: Sequence[float], pixels: int, background: float) -> Tensor:
    """An image scaled to fit into a square or cube (C, pixels, pixels, ...); an enlarged one shows its own pixels.

    Args:
        array: ``[C, *S]``.
        lengths: the lengths of its sides in the same unit.
        pixels: the size of the longest one.
        background: fills the rest.
    """
    sizes = [max(1, round(length * pixels / max(lengths))) for length in lengths]
    smaller = [min(size, own) for size, own in zip(sizes, array.shape[1:], strict=True)]
    image = nn.functional.interpolate(torch.from_numpy(array)[None].float(), smaller, mode="area")
    image = nn.functional.interpolate(image, sizes, mode="nearest-exact")[0]
    spare = [pixels - size for size in reversed(sizes)]  # of the last axis first
    return nn.functional.pad(image, [n for each in spare for n in (each // 2, each - each // 2)], value=background)


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
