"""Axes of z_sem along which a set of cases varies alike."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_diffae.latents.dimensions import ACTIVE_SHARE
from monai_diffae.latents.statistics import checked_codes


def whitening(z: ArrayLike) -> NDArray[np.float64]:
    """The matrix ``[D, D]`` that brings z_sem to axes along which the cases have a variance of 1.

    ``z @ matrix`` then shows a case that lies where the others do not vary, however little it is. To the variance
    along each axis 1 % of that of a normalised dimension is added, so that axes without any are not blown up.

    Args:
        z: ``[N, D]``, normalised.

    Raises:
        ConfigError: another shape, no case, or values that are not finite.

    Example:
        >>> z = np.random.default_rng(0).normal(size=(1000, 2)) @ [[1.0, 1.0], [0.1, -0.1]]
        >>> np.round(np.cov(z @ whitening(z), rowvar=False), 1) + 0.0
        array([[0.7, 0. ],
               [0. , 1. ]])
    """
    codes = checked_codes(z, num_least=1).astype(np.float64)
    variance, axes = np.linalg.eigh(np.cov(codes, rowvar=False, bias=True).reshape(codes.shape[1], -1))
    whitened: NDArray[np.float64] = axes / np.sqrt(variance.clip(min=0) + ACTIVE_SHARE)
    return whitened
