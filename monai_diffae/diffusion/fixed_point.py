"""Fixed points of a map that need not contract, by Anderson's acceleration (Walker and Ni 2011, algorithm AA)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

MEMORY = 4
"""Evaluations that the next guess is made from."""

_PARALLEL = 1e-6  # of the largest singular value: what is below is rounding


def fixed_point(step: Callable[[Tensor], Tensor], x: Tensor, *, tolerance: float, evaluations: int) -> Tensor:
    """The x with step(x) = x, from a guess; all of x is one problem.

    Args:
        step: the map.
        x: the guess.
        tolerance: it ends when step(x) and x differ by no more than this mean square,
        evaluations: or after so many.

    Returns:
        The last step(x), of whatever shape.

    Example:
        >>> x = fixed_point(lambda x: 1 - 3 * x, torch.zeros(2), tolerance=1e-10, evaluations=4)
        >>> x
        tensor([0.2500, 0.2500])
    """
    mapped: list[Tensor] = []
    residuals: list[Tensor] = []
    for _ in range(evaluations):
        mapped = [*mapped[1 - MEMORY :], step(x)]
        residuals = [*residuals[1 - MEMORY :], mapped[-1] - x]
        if not tolerance < float(residuals[-1].square().mean()) < math.inf:
            break
        x = _combined(mapped, residuals)
    return mapped[-1]


def _combined(mapped: list[Tensor], residuals: list[Tensor]) -> Tensor:
    """What the map would give where the residual, taken to be linear, is least."""
    if len(mapped) == 1:
        return mapped[0]
    changes = torch.stack([(residuals[-1] - earlier).flatten() for earlier in residuals[:-1]])
    # a system of three unknowns at most: on the CPU, as not every device has float64
    normal = (changes @ changes.T).cpu().double()
    weights = (
        torch.linalg.pinv(normal, rtol=_PARALLEL, hermitian=True) @ (changes @ residuals[-1].flatten()).cpu().double()
    )
    x = mapped[-1]
    for weight, earlier in zip(weights.tolist(), mapped[:-1], strict=True):
        x = x - weight * (mapped[-1] - earlier)
    return x
