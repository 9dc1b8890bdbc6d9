"""How many dimensions of z_sem vary over a cohort, and how many of them independently."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from monai_diffae.latents.statistics import checked_codes

ACTIVE_SHARE = 0.01
"""Of the mean variance of a dimension: below it, a dimension is called inactive."""

_EXPLAINED = 0.95


@dataclass(frozen=True)
class ActiveDimensions:
    """What :func:`active_dimensions` counts.

    Attributes:
        dims: D, those that there are.
        active: those whose variance over the cases is above 1 % of the mean variance of all dimensions.
        participation_ratio: the square of the sum of the covariance's eigenvalues over the sum of their squares: D
            where all directions vary alike, 1 where all cases are on a line.
        dims_for_95_percent: how many principal components explain 95 % of the variance.
    """

    dims: int
    active: int
    participation_ratio: float
    dims_for_95_percent: int


def active_dimensions(z: ArrayLike) -> ActiveDimensions:
    """Count the dimensions of z_sem that the cases use.

    After the active units of Burda et al. 2016, who call a dimension active whose variance is above .01, its prior's
    being 1; z_sem has no prior, so the mean variance takes its place. The other two are of the covariance, and tell
    where dimensions say the same; of N cases they cannot be above N - 1.

    Args:
        z: ``[N, D]``, as the decoder gets it, N at least 2.

    Raises:
        ConfigError: another shape, too few cases, or values that are not finite.

    Example:
        >>> z = np.random.default_rng(0).normal(size=(500, 3))
        >>> active_dimensions(np.concatenate([z, z[:, :1], np.zeros((500, 4))], axis=1))
        ActiveDimensions(dims=8, active=4, participation_ratio=2.6..., dims_for_95_percent=3)
    """
    codes = checked_codes(z, num_least=2).astype(np.float64)
    centred = codes - codes.mean(axis=0)
    variance = centred.var(axis=0)
    eigenvalues = np.linalg.svd(centred, compute_uv=False) ** 2
    total = eigenvalues.sum()
    if total == 0:
        return ActiveDimensions(codes.shape[1], 0, 0.0, 0)
    explained = np.cumsum(eigenvalues) / total
    return ActiveDimensions(
        dims=codes.shape[1],
        active=int((variance > ACTIVE_SHARE * variance.mean()).sum()),
        participation_ratio=float(total**2 / np.square(eigenvalues).sum()),
        dims_for_95_percent=int(np.searchsorted(explained, _EXPLAINED - 1e-12) + 1),
    )
