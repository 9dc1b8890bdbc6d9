"""Interpolation between two codes: linear for z_sem, spherical for x_T."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from monai_diffae.errors import ConfigError


def lerp(first: Tensor, second: Tensor, weights: Sequence[float]) -> Tensor:
    """Points (W, *) on the straight line between ``first`` (1, *) and ``second`` (1, *), one per weight.

    Example:
        >>> lerp(torch.zeros(1, 2), torch.ones(1, 2), [0, 0.25, 1])[:, 0]
        tensor([0.0000, 0.2500, 1.0000])
    """
    _check(first, second)
    w = _column(weights, first)
    return (1 - w) * first + w * second


def slerp(first: Tensor, second: Tensor, weights: Sequence[float]) -> Tensor:
    """Points (W, *) on the arc between ``first`` (1, *) and ``second`` (1, *), one per weight (Shoemake 1985).

    As in the paper's interpolation of x_T (section 4.2), each code is treated as one vector. Noise in many dimensions
    lies close to a sphere; points on a straight line would leave the sphere and decode to blurred images. Between
    parallel codes, the arc is the straight line.

    Example:
        >>> first, second = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> slerp(first, second, [0, 0.5, 1])
        tensor([[1.0000, 0.0000],
                [0.7071, 0.7071],
                [0.0000, 1.0000]])
    """
    _check(first, second)
    a, b = first.double().flatten(), second.double().flatten()
    cosine = (a @ b / (a.norm() * b.norm())).clamp(-1, 1)
    if not cosine > 1e-12 - 1:  # written so that NaN is refused, too
        raise ConfigError("there is no arc between codes that are opposite, zero or not finite; choose other codes")
    angle = torch.arccos(cosine)
    if angle.sin() < 1e-6:
        return lerp(first, second, weights)
    w = _column(weights, first.double())
    arc = ((1 - w) * angle).sin() * first.double() + (w * angle).sin() * second.double()
    return (arc / angle.sin()).to(first.dtype)


def _column(weights: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(weights, dtype=like.dtype, device=like.device).view(-1, *[1] * (like.ndim - 1))


def _check(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape or len(first) != 1:
        raise ConfigError(
            f"codes of shape {tuple(first.shape)} and {tuple(second.shape)} do not match; "
            "give one of each, of the same shape"
        )
