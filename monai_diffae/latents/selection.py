"""Which cases to label next: diverse, typical, unusual or uncertain ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_diffae.errors import ConfigError
from monai_diffae.latents.neighbors import ReferenceCases, nearest_distances, numbered_groups
from monai_diffae.latents.probing.probes import ProbeModel
from monai_diffae.latents.statistics import Floats, LatentStatistics, checked_codes, float64_codes
from monai_diffae.latents.targets import LabelKind, are_classes, class_name, missing
from monai_diffae.policies import check_choice

Rows = NDArray[np.intp]

_TYPICAL_NEIGHBORS = 20  # typicality is measured within this many nearest members of a cluster, as in TypiClust
_MOST_CLUSTERS = 500
_CASES_PER_CLUSTER = 1000  # with more, searching the neighbors of all members would take minutes
_MANY_CASES = 10_000
_FEW_LABELS = 10  # with fewer, typical cases teach a probe more than those it is uncertain about
_NEIGHBORS = 5
_MOST_REFERENCE_CASES = 5000


@dataclass(frozen=True, eq=False)
class Selection:
    """Selects the cases to label next, given those that are labelled.

    The result is a function of the arguments. Of equally good cases, the first row is selected; so sort the rows by id.
    ``mixed`` needed the fewest labels for classes in our measurements; for numbers, no strategy was reliably better
    than ``random`` after the first few labels. As long as no probe can be fitted, because there is no label or all are
    the same, ``uncertain`` and ``mixed`` select as ``typical`` does.

    - ``random``: any case, by the seed.
    - ``diversity``: the farthest from all labelled and proposed cases (:func:`farthest_first`).
    - ``typical``: the centres of regions without a labelled or proposed case (:func:`typical_first`).
    - ``outlier``: the most unusual (:func:`outlier_order`).
    - ``uncertain``: those that a probe of the labels is least certain about (:func:`uncertainty`).
    - ``mixed``: for classes, with fewer than 10 labels as ``typical``, then farthest first with distances multiplied by
      the uncertainty; for numbers as ``typical``, because the uncertainty of a regression did not help.

    Raises:
        ConfigError: the strategy is unknown, a row does not exist, or values are not finite.

    Example:
        >>> z_sem = [[0.0], [1.0], [5.0], [9.0]]
        >>> Selection(z_sem, [0]).select("diversity"), Selection(z_sem, [0], proposed=[3]).select("diversity")
        (array([3]), array([2]))
    """

    z_sem: ArrayLike  #: ``[N, D]``, not normalised, all cases, labelled or not, sorted by id
    labelled: ArrayLike = ()  #: ``[L]``, rows with a label; they are not selected
    labels: Sequence[Any] = ()  #: ``[L]``, the labels; not needed for strategies without a probe
    proposed: ArrayLike = ()  #: rows that were selected earlier and are not labelled yet; they are not selected again
    #: ``[N]``, the patient of each case, so that ``outlier`` does not take an unusual patient with several scans for
    #: usual; None: each case is a patient of its own
    groups: ArrayLike | None = None
    kind: LabelKind = "auto"  #: whether labels are classes or numbers, as for :func:`uncertainty`
    seed: int = 0  #: random seed

    def select(self, strategy: str, count: int = 1) -> Rows:
        """Select rows by one of :data:`STRATEGIES`, the most useful first; fewer if not as many are left."""
        check_choice("strategy", strategy, STRATEGIES)
        count = min(count, len(self.candidates))
        return STRATEGIES[strategy](self, count) if count > 0 else self.candidates[:0]

    @cached_property
    def z(self) -> Floats:
        """All cases, normalised; zeros if they are all the same."""
        codes = checked_codes(self.z_sem, num_least=0)
        if len(codes) < 2 or not np.ptp(codes, axis=0).any():
            return np.zeros(codes.shape)
        return LatentStatistics.of(codes).normalise(codes).astype(np.float64)

    @cached_property
    def covered(self) -> Rows:
        """The labelled rows, and those that were selected earlier."""
        return np.concatenate([np.asarray(rows, np.intp).reshape(-1) for rows in (self.labelled, self.proposed)])

    @cached_property
    def candidates(self) -> Rows:
        """The rows that may be selected."""
        return np.setdiff1d(np.arange(len(self.z)), self.covered)

    def best(self, scores: Floats, count: int) -> Rows:
        """The candidates with the highest of scores ``[N]``; of equals the first."""
        return self.candidates[np.argsort(-scores[self.candidates], kind="stable")][:count]

    def farthest(self, count: int, weights: Floats | None = None) -> Rows:
        """The candidates that are farthest from the covered cases."""
        factors = None if weights is None else weights[self.candidates]
        return self.candidates[farthest_first(self.z[self.candidates], self.z[self.covered], count, factors)]

    def typical(self, count: int) -> Rows:
        """The most typical candidates."""
        return typical_first(self.z, self.covered, count, self.seed)

    def unusual(self, count: int) -> Rows:
        """The most unusual candidates."""
        order = outlier_order(self.z, self.groups)
        return order[np.isin(order, self.candidates)][:count]

    def uncertain(self, count: int) -> Rows:
        """The candidates that a probe is least certain about."""
        scores = uncertainty(self.z, self.labelled, self.labels, kind=self.kind)
        return self.best(scores, count) if np.ptp(scores) else self.typical(count)

    def mixed(self, count: int) -> Rows:
        """Typical candidates while there are few labels or numbers, then far ones that a probe is uncertain about."""
        if np.size(self.labelled) < _FEW_LABELS or not are_classes(self.labels, self.kind):
            return self.typical(count)
        scores = uncertainty(self.z, self.labelled, self.labels, kind=self.kind)
        return self.farthest(count, scores) if np.ptp(scores) else self.typical(count)


STRATEGIES: dict[str, Callable[[Selection, int], Rows]] = {
    "random": lambda of, count: of.best(np.random.default_rng(of.seed).random(len(of.z)), count),
    "diversity": Selection.farthest,
    "typical": Selection.typical,
    "outlier": Selection.unusual,
    "uncertain": Selection.uncertain,
    "mixed": Selection.mixed,
}
"""The strategies of :meth:`Selection.select`, by name."""


def farthest_first(z: ArrayLike, reference: ArrayLike, count: int, weights: ArrayLike | None = None) -> Rows:
    """Select the case that is farthest from all reference and selected cases, again and again (greedy k-center)."""
    # called core-set selection by Sener & Savarese 2018; without reference cases, the case nearest to the mean is first
    codes = float64_codes(z, num_least=0)
    factors = np.ones(len(codes)) if weights is None else np.asarray(weights, np.float64)
    covered = np.asarray(reference, np.float64)
    nearest = nearest_distances(codes, covered) if len(covered) else np.full(len(codes), np.inf)
    selected: list[int] = []
    while len(selected) < min(count, len(codes)):
        scores = nearest * factors if selected or len(covered) else -np.linalg.norm(codes - codes.mean(axis=0), axis=1)
        scores[selected] = -np.inf
        selected.append(int(scores.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(codes - codes[selected[-1]], axis=1))
    return np.array(selected, np.intp)


def typical_first(z: ArrayLike, covered: ArrayLike, count: int, seed: int = 0) -> Rows:
    """Select the most typical case of each of the largest clusters without a covered case (TypiClust)."""
    # with few labels, typical cases teach a classifier more than uncertain ones (Hacohen et al. 2022): as many clusters
    # as there will be covered cases; a case is typical if its nearest neighbors in its cluster are close
    codes = float64_codes(z, num_least=0)
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

    algorithm = KMeans if len(z) <= _MANY_CASES else MiniBatchKMeans
    distinct = len(np.unique(z, axis=0))
    labels = algorithm(min(count, distinct), n_init=1, random_state=seed).fit_predict(z)
    return numbered_groups(labels)


def _mean_distances(z: Floats) -> Floats:
    """The mean distance ``[N]`` from each member of a cluster to its nearest other members; 0 for a single one."""
    from sklearn.neighbors import NearestNeighbors

    k = min(_TYPICAL_NEIGHBORS, len(z) - 1)
    if k == 0:
        return np.zeros(len(z))
    distances: Floats = NearestNeighbors(n_neighbors=k + 1).fit(z).kneighbors(z)[0][:, 1:].mean(axis=1)
    return distances


def outlier_order(z_sem: ArrayLike, groups: ArrayLike | None = None) -> Rows:
    """All rows, the most unusual first: by the mean distance to the nearest 5 cases of other patients, whitened."""
    codes = checked_codes(z_sem, num_least=0)
    names = np.arange(len(codes)) if groups is None else numbered_groups(groups)
    sample = np.sort(np.random.default_rng(0).permutation(len(codes))[:_MOST_REFERENCE_CASES])
    _, sizes = np.unique(names[sample], return_counts=True)
    k = min(_NEIGHBORS, len(sample) - int(sizes.max(initial=0)))
    if k < 1 or not np.ptp(codes[sample], axis=0).any():  # one patient, or all the same: no case is unusual
        return np.arange(len(codes))
    scores = ReferenceCases.of(codes[sample], names[sample]).distances(codes, names, k, whitened=True)
    return np.argsort(-scores, kind="stable")


def uncertainty(z: ArrayLike, labelled: ArrayLike, labels: Sequence[Any], *, kind: LabelKind = "auto") -> Floats:
    """How uncertain a probe of labels is about each case ``[N]``: its entropy, or standard deviation of numbers."""
    codes, rows = float64_codes(z, num_least=1), np.asarray(labelled, np.intp)
    if rows.shape != (len(labels),) or missing(labels).any():
        raise ConfigError(f"labels: {rows.size} labelled cases need {rows.size} labels, none of them missing")
    if are_classes(labels, kind):
        names, target = np.unique([class_name(label) for label in labels], return_inverse=True)
        if len(names) < 2:
            return np.ones(len(codes))
        order = np.argsort(rows)  # the folds depend on the order of the cases
        rows, target = rows[order], target[order]
        probe = ProbeModel(standardise=False).fit(codes[rows], target, rows, len(names))
        p = np.clip(probe.predict(codes), np.finfo(np.float64).tiny, 1)
        return np.asarray(-(p * np.log(p)).sum(axis=1) / np.log(len(names)))
    return _predictive_std(codes, rows, np.asarray(labels, np.float64))


def _predictive_std(z: Floats, rows: Rows, values: Floats) -> Floats:
    from sklearn.linear_model import BayesianRidge

    if len(values) < 2 or not np.ptp(values):
        return np.ones(len(z))
    scale = values.std()
    _, std = BayesianRidge().fit(z[rows], values / scale).predict(z, return_std=True)
    return np.asarray(std * scale, np.float64)
