"""Small changes of an image, to measure how much they change its z_sem."""

from __future__ import annotations

import torch
from torch import Tensor

from monai_diffae.errors import ConfigError

_AXES = {2: ("up-down", "left-right"), 3: ("left-right", "front-back", "up-down")}  # axes of volumes are in RAS order


def changed_views(images: Tensor, noise: Tensor, model_range: tuple[float, float] = (-1.0, 1.0)) -> dict[str, Tensor]:
    """Change images in several ways: flip them, add noise, shift them, and scale their intensities.

    Args:
        images: (B, C, *S) in the model's range; 2D images as a radiologist sees them, volumes in RAS order.
        noise: standard normal, (B, C, *S); it is added with 1 and 5 % of the range.
        model_range: black and white; values beyond it are clipped, as by the preprocessing.

    Returns:
        The changed images (B, C, *S), by the name of the change.

    Raises:
        ConfigError: the images are neither 2D nor 3D.

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
    """Shift images along an axis; the border is repeated."""
    sources = torch.arange(images.shape[axis], device=images.device) - voxels
    return images.index_select(axis, sources.clamp(min=0))
