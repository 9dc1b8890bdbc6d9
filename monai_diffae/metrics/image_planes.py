"""Images and volumes as stacks of colour images, as networks for natural images take them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

IMAGES_AT_ONCE = 64


def colour_planes(images: Tensor, model_range: tuple[float, float]) -> list[Tensor]:
    """Images (B, C, *S) in ``model_range`` as stacks of colour images (B * n, 3, H, W) from -1 to 1.

    There is one stack, or one for each plane of volumes. A channel counts as a grey image, except that three channels
    are colours. Values beyond the range are clipped.

    Example:
        >>> [tuple(stack.shape) for stack in colour_planes(torch.zeros(2, 1, 4, 5, 6), (0.0, 1.0))]
        [(8, 3, 5, 6), (10, 3, 4, 6), (12, 3, 4, 5)]
    """
    low, high = model_range
    scaled = ((images.float() - low) / (high - low) * 2 - 1).clamp(-1, 1)
    if scaled.shape[1] != 3:
        scaled = scaled.flatten(0, 1)[:, None].expand(-1, 3, *scaled.shape[2:])
    if scaled.ndim == 4:
        return [scaled]
    return [scaled.movedim(axis, 1).flatten(0, 1) for axis in (2, 3, 4)]


@torch.no_grad()
def mean_features(run: Callable[[Tensor], Tensor], images: Tensor, model_range: tuple[float, float]) -> Tensor:
    """The features (B, F) of images (B, C, *S): the mean over the slices of each plane, and then over the planes.

    Args:
        run: gives the features (N, F) of colour images (N, 3, H, W) from -1 to 1.
        images: in 2D or 3D.
        model_range: black and white.
    """
    planes = []
    for stack in colour_planes(images, model_range):
        features = torch.cat([run(part) for part in stack.split(IMAGES_AT_ONCE)])
        planes.append(features.unflatten(0, (len(images), -1)).mean(dim=1))
    return torch.stack(planes).mean(dim=0)
