"""The number of dimensions of z_sem that vary over a cohort, and how many of them vary independently."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from monai_diffae.latents.statistics import checked_codes

ACTIVE_SHARE = 0.01
"""A dimension is active if its variance is above this share of the mean variance of all dimensions."""

_EXPLAINED = 0.95


@dataclass(frozen=True)
class ActiveDimensions:
    """The result of :func:`active_dimensions`.

    Attributes:
        dims: D, the number of dimensions.
        active: dimensions whose variance over the cases is above 1 % of the mean variance of all dimensions.
        participation_ratio: the squared sum of the covariance's eigenvalues, divided by the sum of their squares: D if
            all directions vary equally, 1 if all cases lie on a line.
        dims_for_95_percent: principal components that explain 95 % of the variance.
    """

    dims: int
    active: int
    participation_ratio: float
    dims_for_95_percent: int


def active_dimensions(z: ArrayLike) -> ActiveDimensions:
    """Count the dimensions of z_sem in which the cases differ.

    ``active`` follows the active units of Burda et al. 2016, dimensions with a variance above .01 under a prior with
    variance 1; z_sem has no prior, so its mean variance is used instead. The other two figures are computed from the
    covariance and reveal redundant dimensions; for N cases they cannot exceed N - 1.

    Args:
        z: ``[N, D]``, as the decoder takes it, N at least 2.

    Raises:
        ConfigError: the shape is wrong, there are too few cases, or values are not finite.

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
