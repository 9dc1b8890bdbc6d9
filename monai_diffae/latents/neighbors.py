"""The nearest cases in z_sem, and p-values of scores among those of reference cases."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_diffae.errors import ConfigError
from monai_diffae.latents.statistics import checked_codes

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The k nearest of a pool to each of N cases, the nearest first.

    Attributes:
        indices: ``[N, k]``, rows of the pool.
        distances: ``[N, k]``, Euclidean.
    """

    indices: NDArray[np.int64]
    distances: Floats


def nearest_neighbours(z: ArrayLike, pool: ArrayLike, k: int, groups: ArrayLike, pool_groups: ArrayLike) -> Neighbours:
    """The k nearest rows of a pool that are of another group, such as another patient.

    Args:
        z: ``[N, D]``, normalised.
        pool: ``[M, D]``, as well.
        k: how many.
        groups: ``[N]``, whose each row of ``z`` is.
        pool_groups: ``[M]``, whose each row of the pool is.

    Raises:
        ConfigError: other shapes, values that are not finite, or fewer than k rows of other groups.

    Example:
        >>> found = nearest_neighbours([[0.0, 0.0]], [[0.0, 1.0], [3.0, 4.0], [9.0, 9.0]], 1, ["a"], ["a", "b", "c"])
        >>> found.indices.tolist(), found.distances.tolist()
        ([[1]], [[5.0]])
    """
    from sklearn.neighbors import NearestNeighbors

    y = checked_codes(pool, num_least=1).astype(np.float64)
    x = checked_codes(z, y.shape[1], num_least=1).astype(np.float64)
    owner, of_pool = np.asarray(groups, str), np.asarray(pool_groups, str)
    if owner.shape != (len(x),) or of_pool.shape != (len(y),):
        raise ConfigError("neighbours: as many groups as cases are needed")
    names, sizes = np.unique(of_pool, return_counts=True)
    largest = int(sizes[np.isin(names, owner)].max(initial=0))
    if not 1 <= k <= len(y) - largest:
        raise ConfigError(f"k: {k} is not from 1 to {len(y) - largest}, the number of cases of others; choose another")
    near = NearestNeighbors(n_neighbors=k + largest).fit(y).kneighbors(x, return_distance=False)
    is_own = of_pool[near] == owner[:, None]
    near = np.take_along_axis(near, np.argsort(is_own, axis=1, kind="stable")[:, :k], axis=1)
    # computed again for these pairs, since the fast search rounds small distances
    distances = np.stack([np.linalg.norm(x - y[column], axis=1) for column in near.T], axis=1)
    order = np.lexsort((near, distances), axis=1)
    return Neighbours(np.take_along_axis(near, order, axis=1), np.take_along_axis(distances, order, axis=1))


def p_values(scores: ArrayLike, reference: ArrayLike, is_in_reference: ArrayLike) -> Floats:
    """How likely a reference case has a score at least as high: ``(1 + the number of those that have) / (1 + n)``.

    A case that is one of the n reference cases itself is compared with the n - 1 others. If a case is exchangeable with
    them, its p-value is below a with a probability of at most a (a conformal p-value: Bates et al. 2023).

    Args:
        scores: ``[N]``, higher for what is more unusual; NaN gives NaN.
        reference: ``[n]``, the scores of the reference cases.
        is_in_reference: ``[N]``, whether a case is one of them.

    Raises:
        ConfigError: no reference case.

    Example:
        >>> p_values([9.0, 2.0, 3.0], [1.0, 2.0, 3.0], [False, False, True])
        array([0.25      , 0.75      , 0.33333333])
    """
    values, ordered = np.asarray(scores, np.float64), np.sort(np.asarray(reference, np.float64))
    n = len(ordered)
    if n == 0:
        raise ConfigError("p-values: there is no reference case; give training cases")
    as_high = n - np.searchsorted(ordered, values, side="left")
    p = np.where(np.asarray(is_in_reference, bool), as_high / n, (1 + as_high) / (1 + n))
    return np.where(np.isnan(values), np.nan, p)
