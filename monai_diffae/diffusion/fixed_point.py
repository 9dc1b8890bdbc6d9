"""Fixed points of maps that need not be contractions, by Anderson acceleration (Walker and Ni 2011, algorithm AA)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

MEMORY = 4
"""How many of the latest evaluations the next guess is computed from."""

_RELATIVE_ROUNDING = 1e-6  # singular values below this share of the largest one are rounding errors


def fixed_point(step: Callable[[Tensor], Tensor], x: Tensor, *, tolerance: float, max_evaluations: int) -> Tensor:
    """Solve step(x) = x, starting from a guess. All elements of x are one common problem.

    Stops when the mean square of step(x) - x is at most ``tolerance``, and returns the last step(x).

    Example:
        >>> x = fixed_point(lambda x: 1 - 3 * x, torch.zeros(2), tolerance=1e-10, max_evaluations=4)
        >>> x
        tensor([0.2500, 0.2500])
    """
    mapped: list[Tensor] = []
    residuals: list[Tensor] = []
    for _ in range(max_evaluations):
        mapped = [*mapped[1 - MEMORY :], step(x)]
        residuals = [*residuals[1 - MEMORY :], mapped[-1] - x]
        if not tolerance < float(residuals[-1].square().mean()) < math.inf:
            break
        x = _accelerated(mapped, residuals)
    return mapped[-1]


def _accelerated(mapped: list[Tensor], residuals: list[Tensor]) -> Tensor:
    """The next guess: the combination of earlier values for which the residual, if it were linear, is smallest."""
    if len(mapped) == 1:
        return mapped[0]
    changes = torch.stack([(residuals[-1] - earlier).flatten() for earlier in residuals[:-1]])
    # At most three unknowns: solved on the CPU, because not every device has float64.
    normal = (changes @ changes.T).cpu().double()
    right_side = (changes @ residuals[-1].flatten()).cpu().double()
    weights = torch.linalg.pinv(normal, rtol=_RELATIVE_ROUNDING, hermitian=True) @ right_side
    x = mapped[-1]
    for weight, earlier in zip(weights.tolist(), mapped[:-1], strict=True):
        x = x - weight * (mapped[-1] - earlier)
    return x
