"""Strategies that select the cases to label next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_diffae.errors import ConfigError
from monai_diffae.latents.groups import numbered_groups
from monai_diffae.latents.outliers import ReferenceCases
from monai_diffae.latents.selection.coverage import farthest_first, typical_first
from monai_diffae.latents.selection.uncertainty import uncertainty
from monai_diffae.latents.statistics import LatentStatistics, checked_codes
from monai_diffae.latents.targets import LabelKind, are_classes

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]

_FEW_LABELS = 10  # with fewer, typical cases teach a probe more than those it is uncertain about
_NEIGHBORS = 5
_MOST_REFERENCE_CASES = 5000


@dataclass(frozen=True, eq=False)
class _Task:
    """What a strategy knows: all cases ``z`` (normalised), those with labels, and those that may be selected."""

    z: Floats
    groups: ArrayLike | None
    labelled: Rows
    labels: Sequence[Any]
    proposed: Rows
    candidates: Rows
    count: int
    kind: LabelKind
    seed: int

    @property
    def covered(self) -> Rows:
        return np.concatenate([self.labelled, self.proposed])

    def best(self, scores: Floats) -> Rows:
        """The candidates with the highest of scores ``[N]``; of equals the first."""
        order = np.argsort(-scores[self.candidates], kind="stable")
        return self.candidates[order][: self.count]

    def farthest(self, weights: Floats | None = None) -> Rows:
        """The candidates that are farthest from the covered cases."""
        factors = None if weights is None else weights[self.candidates]
        return self.candidates[farthest_first(self.z[self.candidates], self.z[self.covered], self.count, factors)]

    def uncertainty(self) -> Floats:
        return uncertainty(self.z, self.labelled, self.labels, kind=self.kind)


def select(
    strategy: str,
    z_sem: ArrayLike,
    count: int = 1,
    *,
    labelled: ArrayLike = (),
    labels: Sequence[Any] = (),
    proposed: ArrayLike = (),
    groups: ArrayLike | None = None,
    kind: LabelKind = "auto",
    seed: int = 0,
) -> Rows:
    """Select the cases to label next.

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

    Args:
        strategy: one of :data:`STRATEGIES`.
        z_sem: ``[N, D]``, not normalised, all cases, labelled or not, sorted by id.
        count: number of cases to select.
        labelled: ``[L]``, rows with a label; they are not selected.
        labels: ``[L]``, the labels; not needed for strategies without a probe.
        proposed: rows that were selected earlier and are not labelled yet; they are not selected again.
        groups: ``[N]``, the patient of each case, so that ``outlier`` does not take an unusual patient with several
            scans for usual; None: each case is a patient of its own.
        kind: whether labels are classes or numbers, as for :func:`uncertainty`.
        seed: random seed.

    Returns:
        Rows, the most useful first; fewer than ``count`` if not as many are left.

    Raises:
        ConfigError: the strategy is unknown, a row does not exist, or values are not finite.

    Example:
        >>> z_sem = [[0.0], [1.0], [5.0], [9.0]]
        >>> select("diversity", z_sem, labelled=[0]), select("diversity", z_sem, labelled=[0], proposed=[3])
        (array([3]), array([2]))
    """
    if strategy not in STRATEGIES:
        raise ConfigError(f"strategy: {strategy!r} is not one of {', '.join(STRATEGIES)}")
    codes = checked_codes(z_sem, num_least=0)
    known, earlier = (_rows(rows, len(codes), name) for rows, name in ((labelled, "labelled"), (proposed, "proposed")))
    candidates = np.setdiff1d(np.arange(len(codes)), np.concatenate([known, earlier]))
    if count < 1 or not len(candidates):
        return candidates[:0]
    task = _Task(_normalised(codes), groups, known, labels, earlier, candidates, count, kind, seed)
    return STRATEGIES[strategy](task)


def outlier_order(z_sem: ArrayLike, groups: ArrayLike | None = None) -> Rows:
    """All rows, the most unusual first: by the mean distance to the nearest 5 cases of other patients, whitened.

    With more than 5,000 cases, all are compared with the same 5,000 random ones.

    Args:
        z_sem: ``[N, D]``, not normalised.
        groups: ``[N]``, the patient of each case; None: each case is a patient of its own.

    Raises:
        ConfigError: values are not finite.

    Example:
        >>> outlier_order([[0.0], [0.1], [9.0], [0.3]])[:1]
        array([2])
    """
    codes = checked_codes(z_sem, num_least=0)
    names = np.arange(len(codes)) if groups is None else numbered_groups(groups)
    sample = np.sort(np.random.default_rng(0).permutation(len(codes))[:_MOST_REFERENCE_CASES])
    _, sizes = np.unique(names[sample], return_counts=True)
    k = min(_NEIGHBORS, len(sample) - int(sizes.max(initial=0)))
    if k < 1 or not np.ptp(codes[sample], axis=0).any():  # one patient, or all the same: no case is unusual
        return np.arange(len(codes))
    scores = ReferenceCases.of(codes[sample], names[sample]).distances(codes, names, k, whitened=True)
    return np.argsort(-scores, kind="stable")


def _outliers(task: _Task) -> Rows:
    order = outlier_order(task.z, task.groups)
    return order[np.isin(order, task.candidates)][: task.count]


def _typical(task: _Task) -> Rows:
    return typical_first(task.z, task.covered, task.count, task.seed)


def _uncertain(task: _Task) -> Rows:
    scores = task.uncertainty()
    return task.best(scores) if np.ptp(scores) else _typical(task)


def _mixed(task: _Task) -> Rows:
    if len(task.labelled) < _FEW_LABELS or not are_classes(task.labels, task.kind):
        return _typical(task)
    scores = task.uncertainty()
    return task.farthest(scores) if np.ptp(scores) else _typical(task)


STRATEGIES: dict[str, Callable[[_Task], Rows]] = {
    "random": lambda task: task.best(np.random.default_rng(task.seed).random(len(task.z))),
    "diversity": _Task.farthest,
    "typical": _typical,
    "outlier": _outliers,
    "uncertain": _uncertain,
    "mixed": _mixed,
}
"""The strategies of :func:`select`, by name."""


def _normalised(codes: NDArray[Any]) -> Floats:
    """z_sem scaled by the standard deviations of all cases; zeros if all are the same."""
    if len(codes) < 2 or not np.ptp(codes, axis=0).any():
        return np.zeros(codes.shape)
    return LatentStatistics.of(codes).normalise(codes).astype(np.float64)


def _rows(rows: ArrayLike, num_cases: int, name: str) -> Rows:
    checked = np.asarray(rows, np.intp).reshape(-1)
    if not ((checked >= 0) & (checked < num_cases)).all():
        raise ConfigError(f"{name}: a row is outside 0 to {num_cases - 1}; give row numbers of z_sem")
    return checked
