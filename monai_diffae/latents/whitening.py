"""Whitening of z_sem: axes along which a set of cases has the same variance."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_diffae.latents.dimensions import ACTIVE_SHARE
from monai_diffae.latents.statistics import checked_codes


def whitening(z: ArrayLike) -> NDArray[np.float64]:
    """The matrix ``[D, D]`` that maps z_sem to axes along which the cases have a variance of 1.

    ``z @ matrix`` reveals a case that deviates, however little, in a direction in which the others hardly vary. The
    variance along each axis is increased by 1 % of the variance of a normalised dimension, so that empty directions
    are not amplified without limit.

    Args:
        z: ``[N, D]``, normalised.

    Raises:
        ConfigError: the shape is wrong, there is no case, or values are not finite.

    Example:
        >>> z = np.random.default_rng(0).normal(size=(1000, 2)) @ [[1.0, 1.0], [0.1, -0.1]]
        >>> np.round(np.cov(z @ whitening(z), rowvar=False), 1) + 0.0
        array([[0.7, 0. ],
               [0. , 1. ]])
    """
    codes = checked_codes(z, num_least=1).astype(np.float64)
    variance, axes = np.linalg.eigh(np.cov(codes.T, bias=True).reshape(codes.shape[1], -1))
    whitened: NDArray[np.float64] = axes / np.sqrt(variance.clip(min=0) + ACTIVE_SHARE)
    return whitened
