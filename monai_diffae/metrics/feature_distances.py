"""Distances between two sets of images by their features: FID, KID, precision and recall."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from monai_diffae.errors import ConfigError
from monai_diffae.latents.statistics import Floats, checked_codes

NEIGHBORS = 3  # the neighbor whose distance is the radius of a sample's ball, as in the paper on precision and recall


def frechet_distance(a: ArrayLike, b: ArrayLike) -> float:
    """The squared Frechet distance of Gaussians with the moments of ``[N, D]`` and ``[M, D]`` (Heusel et al. 2017).

    With features of Inception v3 it is the FID. It is biased upwards in small samples, so compare only values of
    equally many samples. The trace of the root of the product of the covariances is computed as the sum of the singular
    values of ``X Y^T / sqrt((N - 1) (M - 1))``, with centred samples X and Y. That is exact and needs no root of a
    matrix, which fails where there are fewer samples than features.

    Example:
        >>> frechet_distance([[0.0], [2.0]], [[10.0], [14.0]])  # means 1 and 12, variances 2 and 8
        123.0...
    """
    x, y = _checked(a, b, num_least=2)
    difference = x.mean(axis=0) - y.mean(axis=0)
    x, y = ((z - z.mean(axis=0)) / np.sqrt(len(z) - 1) for z in (x, y))
    small_x, small_y = (z if len(z) <= z.shape[1] else np.asarray(np.linalg.qr(z, mode="r")) for z in (x, y))
    product = np.linalg.norm(small_x @ small_y.T, ord="nuc")
    return float(difference @ difference + np.square(x).sum() + np.square(y).sum() - 2 * product)


def kernel_distance(a: ArrayLike, b: ArrayLike) -> float:
    """The unbiased squared MMD of ``[N, D]`` and ``[M, D]``, kernel ``(x y / D + 1)^3`` (Binkowski et al. 2018).

    With features of Inception v3 it is the KID. Its expectation is 0 for samples of the same distribution, whatever
    their number, so it can be slightly negative.

    Example:
        >>> round(kernel_distance([[0.0], [1.0]], [[2.0], [3.0]]), 6)
        297.5
    """
    x, y = _checked(a, b, num_least=2)
    of_x, of_y, between = ((one @ other.T / x.shape[1] + 1) ** 3 for one, other in ((x, x), (y, y), (x, y)))
    within = (float((kernel.sum() - np.trace(kernel)) / (len(kernel) * (len(kernel) - 1))) for kernel in (of_x, of_y))
    return sum(within) - 2 * float(between.mean())


def precision_and_recall(real: ArrayLike, generated: ArrayLike, k: int = NEIGHBORS) -> tuple[Floats, Floats]:
    """Which generated samples ``[M, D]`` are realistic, and which real ones ``[N, D]`` are covered (Kynkaanniemi 2019).

    A sample counts if it lies in a ball around a sample of the other set whose radius is the distance to that sample's
    k-th neighbor in its own set. The results are 0 and 1 for each; their means are precision and recall.

    Example:
        >>> realistic, covered = precision_and_recall([[0.0], [1], [2], [9]], [[0.5], [1.5], [30], [40]], k=1)
        >>> float(realistic.mean()), float(covered.mean())
        (0.5, 0.75)
    """
    x, y = _checked(real, generated, num_least=k + 1)
    return _covered(y, x, k), _covered(x, y, k)


def _covered(samples: Floats, others: Floats, k: int) -> Floats:
    """Whether each sample lies in the ball of one of the others."""
    from sklearn.metrics import pairwise_distances

    radii = np.sort(pairwise_distances(others), axis=1)[:, k]  # the first is the sample itself
    return np.asarray((pairwise_distances(samples, others) <= radii).any(axis=1), np.float64)


def _checked(a: ArrayLike, b: ArrayLike, num_least: int) -> tuple[Floats, Floats]:
    try:
        x = checked_codes(a, num_least=num_least).astype(np.float64)
        return x, checked_codes(b, x.shape[1], num_least=num_least).astype(np.float64)
    except ConfigError as error:
        raise ConfigError(str(error).replace("z_sem:", "features:")) from error
