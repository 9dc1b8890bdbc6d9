"""Distances in z_sem: neighbors, near twins, outlier scores and their p-values, and how alike two samples are."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_diffae.diffusion.noise import seed_of
from monai_diffae.errors import ConfigError
from monai_diffae.latents.statistics import (
    Codes,
    Floats,
    LatentStatistics,
    checked_codes,
    float64_codes,
    scales,
    whitening,
)

logger = logging.getLogger(__name__)

_FOLDS = 10
_TWINS = 3  # a case may have this many twins, less one
_CLOSE = 0.15  # of the usual distance to the last of these neighbors
_MOST_COMPARED = 20_000
_BLOCK_MIB = 64
_MEDIAN_ROWS = 1000


def numbered_groups(groups: ArrayLike) -> NDArray[np.intp]:
    """Number groups ``[N]``, such as patients, from 0 in the order of their first cases."""
    # patients are hashed with a key that differs between folders; folds and draws of these numbers do not
    _, first, member = np.unique(np.asarray(groups).astype(str), return_index=True, return_inverse=True)
    numbers: NDArray[np.intp] = np.argsort(np.argsort(first))[member]
    return numbers


@dataclass(frozen=True, eq=False)
class Neighbors:
    """The k nearest rows of a pool to each of N cases, nearest first."""

    indices: NDArray[np.int64]  #: ``[N, k]``, rows of the pool
    distances: Floats  #: ``[N, k]``, Euclidean


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

    y = float64_codes(pool, num_least=1)
    x = float64_codes(z, y.shape[1], num_least=1)
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


def near_pairs(z: ArrayLike, patients: ArrayLike) -> NDArray[np.intp]:
    """Pairs ``[P, 2]`` of cases of different patients whose z_sem are much closer than neighbors usually are."""
    x, groups = float64_codes(z, num_least=1), np.asarray(patients, str)
    _, sizes = np.unique(groups, return_counts=True)
    if len(x) > _MOST_COMPARED:
        logger.info("%d cases are too many to compare all z_sem: twins are not sought", len(x))
    if len(x) > _MOST_COMPARED or len(sizes) <= _TWINS or len(x) - sizes.max() < _TWINS:
        return np.empty((0, 2), np.intp)
    x = (x - x.mean(axis=0)) / np.maximum(x.std(axis=0), np.finfo(float).tiny)
    neighbors = nearest_neighbors(x, x, _TWINS, groups, groups)
    limit = _CLOSE * np.median(neighbors.distances[:, -1])
    rows, columns = np.nonzero(neighbors.distances < limit)
    pairs = np.stack([rows, neighbors.indices[rows, columns]], axis=1)
    return np.unique(np.sort(pairs, axis=1), axis=0)


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


@dataclass(frozen=True, eq=False)
class ReferenceCases:
    """The cases, such as those of the training, with which other cases are compared."""

    z_sem: Codes  #: ``[M, D]``, not normalised
    groups: NDArray[np.str_]  #: ``[M]``, the patient of each case, as text
    statistics: LatentStatistics  #: mean and standard deviation of ``z_sem``
    common_scale: bool = False  #: whether all dimensions have the same scale, as principal components need

    @classmethod
    def of(cls, z_sem: ArrayLike, groups: ArrayLike | None = None, *, common_scale: bool = False) -> "ReferenceCases":
        """The reference cases ``[M, D]`` with their statistics; without groups, each case is a patient of its own."""
        codes = checked_codes(z_sem, num_least=2)
        names = (np.arange(len(codes)) if groups is None else np.asarray(groups)).astype(np.str_)
        return cls(codes, names, LatentStatistics.of(codes, common_scale=common_scale), common_scale)

    def normalised(self, z_sem: ArrayLike) -> Codes:
        """z_sem ``[N, D]`` of any cases, scaled by the standard deviations of the reference cases."""
        return self.statistics.normalise(z_sem)

    def distances(
        self,
        z_sem: ArrayLike,
        groups: ArrayLike,
        k: int,
        whitened: bool,
        track: Callable[[Sequence[int]], Iterable[int]] = iter,
    ) -> Floats:
        """The mean distance ``[N]`` from cases (not normalised) to the k nearest reference cases of other patients.

        ``track`` yields the folds one after the other, and so can show progress.
        """
        # Scales, whitening and neighbors are those of nine of ten folds of the reference patients; the case's own
        # patient is in the tenth. Reference cases are thus scored like unseen cases, and all scores can be compared.
        # The names of the patients decide the fold: give names that never change.
        codes, reference = (float64_codes(z, num_least=1) for z in (z_sem, self.z_sem))
        patients = np.asarray(groups, str)
        names, member = np.unique(self.groups, return_inverse=True)
        num_folds = max(2, min(_FOLDS, len(names)))
        number = {str(name): i for i, name in enumerate(names)}
        fold = np.array([number.get(name, seed_of("units", name)) % num_folds for name in patients.tolist()])
        scores = np.empty(len(codes))
        for i in track(np.unique(fold).tolist()):
            others = member % num_folds != i
            others |= ~others.any()  # a single reference patient cannot be divided
            std = scales(reference[others], self.common_scale)
            std = np.where(std > 0, std, 1)  # the units scale each dimension, or each direction, by its variation
            units = (whitening(reference[others] / std) if whitened else np.eye(len(std))) / std[:, None]
            pool, cases = (z - self.statistics.mean for z in (reference[others], codes[fold == i]))
            nearest = nearest_neighbors(cases @ units, pool @ units, k, patients[fold == i], self.groups[others])
            scores[fold == i] = nearest.distances.mean(axis=1)
        return scores

    def own_distances(self, k: int, whitened: bool) -> Floats:
        """The :meth:`distances` of the reference cases themselves."""
        return self.distances(self.z_sem, self.groups, k, whitened)


@dataclass(frozen=True, eq=False)
class OutlierScores:
    """The result of :func:`outlier_scores`."""

    distances: Floats  #: ``[N]``, the mean distance to the nearest reference cases, higher for more unusual cases
    p_values: Floats  #: ``[N]``, the probability of a distance at least as high among the reference cases


def outlier_scores(
    z_sem: ArrayLike,
    reference: ArrayLike,
    *,
    k: int = 5,
    whitened: bool = True,
    groups: ArrayLike | None = None,
    reference_groups: ArrayLike | None = None,
) -> OutlierScores:
    """Score how unusual new cases are compared with reference cases, with the arithmetic of ``neighbors``.

    Args:
        z_sem: ``[N, D]``, not normalised; none of them is a reference case.
        reference: ``[M, D]``, the reference cases, such as those of the training.
        k: number of neighbors.
        whitened: scale each direction of z_sem by the variation of the reference cases, not only each dimension.
        groups: ``[N]``, the patient of each case; None: none is a patient of the reference cases.
        reference_groups: ``[M]``, their patients; None: each case is a patient of its own.

    Raises:
        ConfigError: there are fewer than k reference cases of other patients, or the shapes do not match.

    Example:
        >>> reference = np.random.default_rng(0).normal(size=(99, 2))
        >>> outlier_scores([[0.0, 0.0], [9.0, 9.0]], reference).p_values
        array([0.59, 0.01])
    """
    num_reference, num = len(np.asarray(reference)), len(np.asarray(z_sem))
    reference_names = range(num_reference) if reference_groups is None else np.asarray(reference_groups).tolist()
    names = [f"case {i}" for i in range(num)] if groups is None else np.asarray(groups).tolist()
    numbers = numbered_groups([*reference_names, *names])
    cases = ReferenceCases.of(reference, numbers[:num_reference])
    distances = cases.distances(z_sem, numbers[num_reference:], k, whitened)
    p = p_values(distances, cases.own_distances(k, whitened), np.zeros(len(distances), bool))
    return OutlierScores(distances, p)


# -- two samples: do they have the same distribution, and does one copy the other? ----------------------------------


def mmd(a: ArrayLike, b: ArrayLike, bandwidth: float | None = None) -> float:
    """The unbiased squared maximum mean discrepancy (Gretton et al., 2012, equation 3).

    The kernel is ``exp(-|x - y|^2 / (2 bandwidth^2))``. The expectation is 0 for samples of the same distribution, so
    the value can be slightly negative. Give normalised z_sem.

    Args:
        a: ``[N, D]``, N at least 2.
        b: ``[M, D]``, M at least 2.
        bandwidth: above 0; None: the median distance between the cases of both samples (at most 1000, evenly spaced).

    Example:
        >>> round(mmd([[0.0], [1.0]], [[100.0], [101.0]], bandwidth=1.0), 3)  # 2 exp(-1/2)
        1.213
    """
    from scipy.spatial.distance import pdist
    from sklearn.metrics import pairwise_distances_chunked

    x = float64_codes(a, num_least=2)
    y = float64_codes(b, x.shape[1], num_least=2)
    pooled = np.concatenate([x, y])
    if bandwidth is None:
        bandwidth = float(np.median(pdist(pooled[:: -(-len(pooled) // _MEDIAN_ROWS)])))
    if not 0 < bandwidth < np.inf:
        raise ConfigError(f"bandwidth: {bandwidth} is not above 0; set another, or give cases that differ")
    in_x = (np.arange(len(pooled)) < len(x)).astype(np.float64)[:, None]
    sums, start = np.zeros(3), 0
    for distances in pairwise_distances_chunked(pooled, metric="euclidean", working_memory=_BLOCK_MIB):
        rows = np.arange(start, start + len(distances))
        pairs = np.exp(-(distances**2) / (2 * bandwidth**2))
        pairs[rows - start, rows] = 0  # no case is paired with itself
        with_x, with_y = pairs @ in_x, pairs @ (1 - in_x)
        sums += [(in_x[rows] * with_x).sum(), ((1 - in_x[rows]) * with_y).sum(), (in_x[rows] * with_y).sum()]
        start += len(rows)
    n, m = len(x), len(y)
    return float(sums[0] / (n * (n - 1)) + sums[1] / (m * (m - 1)) - 2 * sums[2] / (n * m))


def nearest_distances(a: ArrayLike, b: ArrayLike) -> Floats:
    """The distance from each row of a to its nearest row of b: ``[N, D]``, ``[M, D]`` -> ``[N]``.

    Example:
        >>> nearest_distances([[0.0, 0.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 4.0]])
        array([0., 3.])
    """
    from sklearn.metrics import pairwise_distances_argmin

    x = float64_codes(a, num_least=1)
    y = float64_codes(b, x.shape[1], num_least=1)
    # recomputed for these pairs, since the fast search rounds small distances
    return np.linalg.norm(x - y[pairwise_distances_argmin(x, y)], axis=1)


def copying_ratio(samples: ArrayLike, train: ArrayLike, held_out: ArrayLike) -> float:
    """The median distance from samples to their nearest training case, divided by that of held-out cases.

    At about 1, samples are as new as unseen cases; far below 1, they are copies of the training set.

    Args:
        samples: ``[N, D]``, normalised.
        train: ``[M, D]``, the training cases of the model that drew the samples.
        held_out: ``[K, D]``, cases that the model was not trained on.

    Raises:
        ConfigError: the shapes do not match, values are not finite, or half of the held-out cases or more are in the
            training set.

    Example:
        >>> train, new, held_out = np.random.default_rng(0).normal(size=(3, 200, 8))
        >>> round(copying_ratio(new, train, held_out), 1), copying_ratio(train[:50], train, held_out)
        (1.0, 0.0)
    """
    usual_distance = float(np.median(nearest_distances(held_out, train)))
    if usual_distance == 0:
        raise ConfigError("held_out: half of the cases or more are in the training set; give cases that are not")
    return float(np.median(nearest_distances(samples, train))) / usual_distance
