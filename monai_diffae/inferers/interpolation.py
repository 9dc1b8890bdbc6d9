"""Between two codes: z_sem on a straight line, x_T on the sphere that noise lies on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from monai_diffae.errors import ConfigError


def lerp(first: Tensor, second: Tensor, weights: Sequence[float]) -> Tensor:
    """The points (W, *) on the straight line from ``first`` (1, *) to ``second`` (1, *), 0 being the first.

    Example:
        >>> lerp(torch.zeros(1, 2), torch.ones(1, 2), [0, 0.25, 1])[:, 0]
        tensor([0.0000, 0.2500, 1.0000])
    """
    _check(first, second)
    w = _column(weights, first)
    return (1 - w) * first + w * second


def slerp(first: Tensor, second: Tensor, weights: Sequence[float]) -> Tensor:
    """The points (W, *) on the arc from ``first`` (1, *) to ``second`` (1, *) (Shoemake 1985).

    As in the paper's interpolation of x_T (section 4.2), each code taken as one vector: a straight line would leave
    the sphere near which noise of so many dimensions lies, and decode to blurred images. Between codes of one direction
    the arc is the line.

    Raises:
        ConfigError: codes of different shapes, or between which there is no one arc: opposite ones, zero, not finite.

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
    if not cosine > 1e-12 - 1:  # NaN, too
        raise ConfigError("there is no arc between codes that are opposite, zero or not finite; give others")
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
            f"codes of shape {tuple(first.shape)} and {tuple(second.shape)}: give one of each, of the same shape"
        )
