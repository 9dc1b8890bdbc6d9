"""Conversion between volumes and batches of their slices, for 2D networks."""

from __future__ import annotations

from torch import Tensor


def to_slices(volumes: Tensor) -> Tensor:
    """The slices of volumes along the last axis: (B, C, H, W, D) -> (B * D, C, H, W); codes (B, D, Z) -> (B * D, Z)."""
    return volumes.movedim(-1, 1).flatten(0, 1) if volumes.ndim > 3 else volumes.flatten(0, 1)


def from_slices(slices: Tensor, num_slices: int) -> Tensor:
    """The inverse of :func:`to_slices`; ``num_slices`` is D.

    Example:
        >>> import torch
        >>> volumes = torch.randn(2, 1, 4, 4, 3)
        >>> bool((from_slices(to_slices(volumes), 3) == volumes).all())
        True
    """
    stacked = slices.unflatten(0, (-1, num_slices))
    return stacked.movedim(1, -1) if slices.ndim > 2 else stacked
