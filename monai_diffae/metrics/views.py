"""Small changes of an image, to see whether its z_sem stays what it is."""

from __future__ import annotations

import torch
from torch import Tensor

from monai_diffae.errors import ConfigError

_AXES = {2: ("up-down", "left-right"), 3: ("left-right", "front-back", "up-down")}  # of volumes in RAS order


def changed_views(images: Tensor, noise: Tensor, model_range: tuple[float, float] = (-1.0, 1.0)) -> dict[str, Tensor]:
    """The images mirrored, noisier, a little aside, darker and brighter: by name, (B, C, *S) each.

    Args:
        images: (B, C, *S) in the model's range, 2D as a radiologist sees them or volumes in RAS order.
        noise: standard normal, (B, C, *S); of it 1 and 5 % of the range are added.
        model_range: black and white; what goes beyond is cut off, as the preprocessing does.

    Raises:
        ConfigError: neither 2D nor 3D.

    Example:
        >>> views = changed_views(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4))
        >>> list(views)[:4]
        ['flip up-down', 'flip left-right', 'noise 1 %', 'noise 5 %']
    """
    low, high = model_range
    if images.ndim - 2 not in _AXES:
        raise ConfigError(f"views: the images have the shape {tuple(images.shape)}; (B, C, *S) in 2D or 3D is needed")
    axes = dict(enumerate(_AXES[images.ndim - 2], start=2))
    views = {f"flip {name}": images.flip(axis) for axis, name in axes.items()}
    views |= {f"noise {share} %": images + share / 100 * (high - low) * noise for share in (1, 5)}
    views |= {f"shift {n} {name}": _shifted(images, n, axis) for n in (1, 2) for axis, name in axes.items()}
    views |= {f"intensity x {scale}": low + scale * (images - low) for scale in (0.9, 1.1)}
    return {name: view.clamp(low, high) for name, view in views.items()}


def _shifted(images: Tensor, voxels: int, axis: int) -> Tensor:
    """Moved along an axis; the border is repeated."""
    places = torch.arange(images.shape[axis], device=images.device) - voxels
    return images.index_select(axis, places.clamp(min=0))
