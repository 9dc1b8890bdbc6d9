"""How far z_sem moves where the case stays the same, beside how far other cases are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_diffae.errors import ConfigError
from monai_diffae.latents.statistics import checked_codes


@dataclass(frozen=True)
class Stability:
    """What :func:`stability` measures.

    Attributes:
        ratio: the median distance between a case's two z_sem, over the median distance between different patients'.
            0: it does not move; 1: as far as to a stranger.
        ratio_90: the same of the 90th percentile of the first.
        rank_1: the share of cases whose z_sem, seen again, is nearer to their own than to any other patient's.
        num_cases: how many there are.
    """

    ratio: float
    ratio_90: float
    rank_1: float
    num_cases: int


def stability(z: ArrayLike, z_again: ArrayLike, own: NDArray[np.bool_], strangers: NDArray[np.bool_]) -> Stability:
    """Compare the z_sem of cases with those of the same cases seen again.

    Args:
        z: ``[N, D]``, normalised.
        z_again: ``[N, D]``, as well: of the cases changed, or ``z`` once more where cases are compared with others.
        own: ``[N, N]``, whether column j of ``z`` is what row i of ``z_again`` should be near to; the nearest counts.
        strangers: ``[N, N]``, whether they are of different patients. What is neither does not count: the case itself
            among its other scans, or other slices of one volume.

    Raises:
        ConfigError: other shapes, values that are not finite, no case with both its own and strangers, or z_sem that
            is the same for most patients.

    Example:
        >>> z = np.random.default_rng(0).normal(size=(50, 8))
        >>> is_own = np.eye(50, dtype=bool)
        >>> moved = stability(z, z + 0.01, is_own, ~is_own)
        >>> round(moved.ratio, 3), moved.rank_1
        (0.007, 1.0)
    """
    x = checked_codes(z, num_least=1).astype(np.float64)
    again = checked_codes(z_again, x.shape[1], num_least=1).astype(np.float64)
    if not len(x) == len(again) == len(own) or own.shape != strangers.shape:
        raise ConfigError("stability: z, z_again, own and strangers must be of as many cases")
    judged = np.flatnonzero(own.any(axis=1) & strangers.any(axis=1))
    if not len(judged):
        raise ConfigError("stability: no case is seen again beside another patient's; give more cases")
    gone, to_stranger = np.empty(len(judged)), np.empty(len(judged))
    for place, i in enumerate(judged):  # row by row: [N, N, D] of a cohort is too large
        distances = np.linalg.norm(x - again[i], axis=1)
        gone[place], to_stranger[place] = distances[own[i]].min(), distances[strangers[i]].min()
    usual = float(np.median(np.concatenate([np.linalg.norm(x[strangers[i]] - x[i], axis=1) for i in judged])))
    if usual == 0:
        raise ConfigError("stability: most patients have the same z_sem; train the encoder")
    ratio, ratio_90 = np.percentile(gone, [50, 90]) / usual
    return Stability(float(ratio), float(ratio_90), float((gone < to_stranger).mean()), len(judged))
