"""The nearest cases in z_sem, and p-values of scores among those of reference cases."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_diffae.errors import ConfigError
from monai_diffae.latents.statistics import checked_codes

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Neighbors:
    """The k nearest rows of a pool to each of N cases, nearest first.

    Attributes:
        indices: ``[N, k]``, rows of the pool.
        distances: ``[N, k]``, Euclidean.
    """

    indices: NDArray[np.int64]
    distances: Floats


def nearest_neighbors(
    z: ArrayLike, pool: ArrayLike, k: int, groups: ArrayLike | None = None, pool_groups: ArrayLike | None = None
) -> Neighbors:
    """Find the k nearest rows of a pool, without those of the same group, such as the same patient.

    Args:
        z: ``[N, D]``, normalised.
        pool: ``[M, D]``, normalised in the same way.
        k: number of neighbors.
        groups: ``[N]``, the group of each row of ``z``; None: no row of the pool is left out.
        pool_groups: ``[M]``, the group of each row of the pool; None: each row is a group of its own.

    Raises:
        ConfigError: the shapes do not match, values are not finite, or there are fewer than k rows of other groups.

    Example:
        >>> pool = [[0.0, 1.0], [3.0, 4.0], [9.0, 9.0]]
        >>> neighbors = nearest_neighbors([[0.0, 0.0]], pool, 1, ["a"], ["a", "b", "c"])
        >>> neighbors.indices.tolist(), neighbors.distances.tolist()
        ([[1]], [[5.0]])
    """
    from sklearn.neighbors import NearestNeighbors

    y = checked_codes(pool, num_least=1).astype(np.float64)
    x = checked_codes(z, y.shape[1], num_least=1).astype(np.float64)
    group = np.full(len(x), "") if groups is None else np.asarray(groups, str)
    pool_group = np.arange(len(y)).astype(str) if pool_groups is None else np.asarray(pool_groups, str)
    if group.shape != (len(x),) or pool_group.shape != (len(y),):
        raise ConfigError("neighbors: give as many groups as cases")
    names, sizes = np.unique(pool_group, return_counts=True)
    largest = int(sizes[np.isin(names, group)].max(initial=0))
    if not 1 <= k <= len(y) - largest:
        raise ConfigError(f"k: {k} is not from 1 to {len(y) - largest}, the number of other patients' cases; lower k")
    indices = NearestNeighbors(n_neighbors=k + largest).fit(y).kneighbors(x, return_distance=False)
    is_own = pool_group[indices] == group[:, None]
    indices = np.take_along_axis(indices, np.argsort(is_own, axis=1, kind="stable")[:, :k], axis=1)
    # recomputed for these pairs, since the fast search rounds small distances
    distances = np.stack([np.linalg.norm(x - y[column], axis=1) for column in indices.T], axis=1)
    order = np.lexsort((indices, distances), axis=1)
    return Neighbors(np.take_along_axis(indices, order, axis=1), np.take_along_axis(distances, order, axis=1))


def p_values(scores: ArrayLike, reference: ArrayLike, is_in_reference: ArrayLike) -> Floats:
    """The probability that a reference case scores at least as high: ``(1 + number of those that do) / (1 + n)``.

    A case that is itself one of the n reference cases is compared with the other n - 1. For a case that is exchangeable
    with the reference cases, the p-value is below a with a probability of at most a (a conformal p-value: Bates et al.
    2023).

    Args:
        scores: ``[N]``, higher for more unusual cases; NaN gives NaN.
        reference: ``[n]``, the scores of the reference cases.
        is_in_reference: ``[N]``, whether a case is one of them.

    Raises:
        ConfigError: there is no reference case.

    Example:
        >>> p_values([9.0, 2.0, 3.0], [1.0, 2.0, 3.0], [False, False, True])
        array([0.25      , 0.75      , 0.33333333])
    """
    values, ordered = np.asarray(scores, np.float64), np.sort(np.asarray(reference, np.float64))
    n = len(ordered)
    if n == 0:
        raise ConfigError("p-values: there is no reference case; give training cases")
    num_as_high = n - np.searchsorted(ordered, values, side="left")
    p = np.where(np.asarray(is_in_reference, bool), num_as_high / n, (1 + num_as_high) / (1 + n))
    return np.where(np.isnan(values), np.nan, p)
