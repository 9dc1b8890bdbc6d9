"""Cases with their reconstructions, anomaly maps and outlines of the masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from monai_diffae.pictures.mosaic import draw_mosaic, in_colours, three_planes

_OUTLINE = (1.0, 0.25, 0.1)  # red, green, blue


def draw_anomalies(
    cases: Sequence[Mapping[str, Tensor]],
    captions: Sequence[str],
    path: Path,
    model_range: tuple[float, float] = (-1.0, 1.0),
) -> None:
    """Draw one column per case: the input, the reconstruction, the map in colours, the input with the mask's outline.

    Args:
        cases: ``image`` and ``reconstruction`` (C, *S), ``map`` (1, *S) and ``mask`` (1, *S) of each case. Volumes are
            shown in three planes through the map's highest value.
        captions: a heading for each case.
        path: the PNG.
        model_range: black and white.
    """
    limit = max(float(case["map"].max()) for case in cases)
    rows: dict[str, list[Tensor]] = {"input": [], "expected": [], "anomaly map": [], "mask": []}
    for case in cases:
        flat = _in_planes(case)
        rows["input"].append(_in_grey(flat["image"]))
        rows["expected"].append(_in_grey(flat["reconstruction"]))
        rows["anomaly map"].append(in_colours(flat["map"], limit, "inferno", model_range))
        rows["mask"].append(_outlined(_in_grey(flat["image"]), flat["mask"], model_range))
    draw_mosaic({name: torch.cat(images) for name, images in rows.items()}, path, model_range, captions)


def _in_planes(case: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors (1, C, H, W) of a case."""
    tensors = {name: tensor.as_subclass(Tensor)[None].float().cpu() for name, tensor in case.items()}
    if tensors["map"].ndim == 4:
        return tensors
    peak = torch.unravel_index(tensors["map"].argmax(), tensors["map"].shape)[2:]
    planes = {name: three_planes(tensor, [int(i) for i in peak]) for name, tensor in tensors.items()}
    return {name: plane.nan_to_num(posinf=0.0) if name in ("map", "mask") else plane for name, plane in planes.items()}


def _in_grey(images: Tensor) -> Tensor:
    """Images (1, 3, H, W); those with another number of channels by their first channel."""
    return images if images.shape[1] == 3 else images[:, :1].expand(-1, 3, -1, -1)


def _outlined(images: Tensor, masks: Tensor, model_range: tuple[float, float]) -> Tensor:
    """Images (1, 3, H, W) with the pixels at the inner border of the mask in colour."""
    low, high = model_range
    eroded = -nn.functional.max_pool2d(-nn.functional.pad(masks, (1, 1, 1, 1)), 3, stride=1)
    border = (masks > 0) & (eroded <= 0)
    colour = torch.tensor(_OUTLINE).view(1, 3, 1, 1) * (high - low) + low
    return torch.where(border, colour, images)
