"""Selections that cover all cases without knowing labels: by distance, and by density."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_diffae.latents.groups import numbered_groups
from monai_diffae.latents.statistics import checked_codes
from monai_diffae.latents.two_samples import nearest_distances

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]

_NEIGHBORS = 20  # typicality is measured within this many nearest members of a cluster, as in TypiClust
_MOST_CLUSTERS = 500
_CASES_PER_CLUSTER = 1000  # with more, searching the neighbors of all members would take minutes
_MANY_CASES = 10_000


def farthest_first(z: ArrayLike, reference: ArrayLike, count: int, weights: ArrayLike | None = None) -> Rows:
    """Select the case that is farthest from all reference and selected cases, again and again.

    This is the greedy k-center algorithm, which Sener & Savarese 2018 call core-set selection: the largest distance
    from any case to the nearest selected one is at most twice as large as it can be. Without reference cases, the
    first selection is the case nearest to the mean. Of equally far cases, the first row is selected.

    Args:
        z: ``[N, D]``, normalised, the cases to select from.
        reference: ``[M, D]``, normalised, cases that are covered already, such as those with labels; M may be 0.
        count: number of cases to select.
        weights: ``[N]``, factors of the distances, such as uncertainties; None: 1.

    Returns:
        ``[min(count, N)]``, rows of ``z`` in the order of their selection.

    Raises:
        ConfigError: the shapes do not match, or values are not finite.

    Example:
        >>> farthest_first([[0.0], [1.0], [5.0], [9.0]], [[0.0]], 2)
        array([3, 2])
    """
    codes = checked_codes(z, num_least=0).astype(np.float64)
    factors = np.ones(len(codes)) if weights is None else np.asarray(weights, np.float64)
    covered = np.asarray(reference, np.float64)
    if len(covered):
        nearest = nearest_distances(codes, checked_codes(covered, codes.shape[1], num_least=1))
    selected: list[int] = []
    while len(selected) < min(count, len(codes)):
        if selected or len(covered):
            scores = nearest * factors
        else:
            nearest = np.full(len(codes), np.inf)
            scores = -np.linalg.norm(codes - codes.mean(axis=0), axis=1)
        scores[selected] = -np.inf
        selected.append(int(scores.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(codes - codes[selected[-1]], axis=1))
    return np.array(selected, np.intp)


def typical_first(z: ArrayLike, covered: ArrayLike, count: int, seed: int = 0) -> Rows:
    """Select the most typical case of each of the largest clusters without a covered case (TypiClust).

    With few labels, typical cases teach a classifier more than uncertain ones (Hacohen et al. 2022). The cases are
    divided by k-means into as many clusters as there will be covered cases (at most 500, and at least one for 1,000
    cases). A case is typical if the mean distance to its 20 nearest neighbors in its cluster is small.

    Args:
        z: ``[N, D]``, normalised, all cases.
        covered: rows of ``z`` that are labelled or proposed already.
        count: number of cases to select.
        seed: random seed of k-means.

    Returns:
        Rows of ``z`` in the order of their selection, none of them covered; ``count`` of them if there are as many.

    Raises:
        ConfigError: the shapes do not match, or values are not finite.

    Example:
        >>> z = [[0.0], [0.1], [0.2], [9.0], [9.1], [9.3]]
        >>> typical_first(z, [1], 1), typical_first(z, [], 2)
        (array([4]), array([1, 4]))
    """
    codes = checked_codes(z, num_least=0).astype(np.float64)
    done = np.zeros(len(codes), bool)
    done[np.asarray(covered, np.intp)] = True
    num_covered = int(done.sum())
    count = min(count, len(codes) - num_covered)
    if count <= 0:
        return np.empty(0, np.intp)
    num_clusters = max(min(num_covered + count, _MOST_CLUSTERS), len(codes) // _CASES_PER_CLUSTER)
    clusters = _clusters(codes, num_clusters, seed)
    num_done = np.bincount(clusters[done], minlength=clusters.max() + 1)
    sizes = np.bincount(clusters, minlength=len(num_done))
    selected: list[int] = []
    while len(selected) < count:
        left = np.bincount(clusters[~done], minlength=len(sizes))
        # clusters with the fewest covered cases first, of these the largest, of these the first
        best = np.lexsort((np.arange(len(sizes)), -sizes, num_done, left == 0))[0]
        members = np.flatnonzero(clusters == best)
        typical = members[np.argsort(_mean_distances(codes[members]), kind="stable")]
        row = int(typical[~done[typical]][0])
        selected.append(row)
        done[row] = True
        num_done[best] += 1
    return np.array(selected, np.intp)


def _clusters(z: Floats, count: int, seed: int) -> Rows:
    """The cluster ``[N]`` of each case, numbered in the order of their first rows."""
    from sklearn.cluster import KMeans, MiniBatchKMeans

    kind = KMeans if len(z) <= _MANY_CASES else MiniBatchKMeans
    distinct = len(np.unique(z, axis=0))
    labels = kind(min(count, distinct), n_init=1, random_state=seed).fit_predict(z)
    return numbered_groups(labels)


def _mean_distances(z: Floats) -> Floats:
    """The mean distance ``[N]`` from each member of a cluster to its nearest other members; 0 for a single one."""
    from sklearn.neighbors import NearestNeighbors

    k = min(_NEIGHBORS, len(z) - 1)
    if k == 0:
        return np.zeros(len(z))
    distances: Floats = NearestNeighbors(n_neighbors=k + 1).fit(z).kneighbors(z)[0][:, 1:].mean(axis=1)
    return distances
