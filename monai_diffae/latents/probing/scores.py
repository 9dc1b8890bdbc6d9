"""Scores of predictions, with intervals from a bootstrap over patients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_diffae.latents.neighbors import numbered_groups
from monai_diffae.latents.statistics import Floats

CHANCE = {"auroc": 0.5, "r2": 0.0}
"""The main scores if there is nothing to learn."""
NAMES = {"auroc": "AUROC", "r2": "R2"}
_NUM_PERMUTATIONS, _MOST_PERMUTED = 2000, 500  # patients; with more, intervals tell the same


class ClassScores:
    """AUROC, AUPRC, balanced accuracy and Brier score of probabilities, for any weights of the cases.

    With two classes, AUROC and AUPRC refer to the second; with more, they are one-vs-rest averages over the classes
    that have a case with a weight. The Brier score is the mean of ``(p_1 - y_1)^2`` with two classes, else of the sum
    over all classes. The values equal scikit-learn's, also with ties, and are computed 50 times faster, since the cases
    are ranked once for all weights.

    Args:
        truth: ``[N]``, the class of each case, counted from 0.
        probabilities: ``[N, K]``.
        predicted: ``[N]``, the predicted class for the balanced accuracy; None: the most probable one.
        ranking: ``[N, K]``, values that rank the cases for AUROC and AUPRC; None: the probabilities.

    Example:
        >>> scores = ClassScores([0, 0, 1, 1], [[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]])
        >>> dict(zip(scores.metrics, scores(np.ones(4)).round(3).tolist()))
        {'auroc': 1.0, 'auprc': 1.0, 'balanced_accuracy': 0.75, 'brier': 0.125}
    """

    metrics = ("auroc", "auprc", "balanced_accuracy", "brier")
    perfect = None  # their intervals are bounded by :func:`bounded_interval`

    def __init__(
        self,
        truth: ArrayLike,
        probabilities: ArrayLike,
        predicted: ArrayLike | None = None,
        ranking: ArrayLike | None = None,
    ) -> None:
        self.truth, p = np.asarray(truth, np.intp), np.asarray(probabilities, np.float64)
        predicted_class = p.argmax(axis=1) if predicted is None else np.asarray(predicted)
        is_class, ranks = np.eye(p.shape[1])[self.truth], p if ranking is None else np.asarray(ranking, np.float64)
        scored = slice(1, 2) if p.shape[1] == 2 else slice(None)
        self._ranks = [
            (one, np.unique(score, return_inverse=True)[1])
            for one, score in zip(is_class.T[scored], ranks.T[scored], strict=True)
        ]
        self._is_correct = (predicted_class == self.truth).astype(np.float64)
        self._squares = ((p - is_class)[:, scored] ** 2).sum(axis=1)

    def __call__(self, weights: Floats) -> Floats:
        """The four scores for weights ``[N]``; NaN if a score is not defined."""
        areas = [_areas(one, rank, weights) for one, rank in self._ranks]
        defined = np.array([pair for pair in areas if pair is not None]).reshape(-1, 2)
        auroc, auprc = defined.mean(axis=0) if len(defined) else (np.nan, np.nan)
        class_weights = np.bincount(self.truth, weights)
        correct = np.bincount(self.truth, weights * self._is_correct)
        recall = (correct / np.where(class_weights > 0, class_weights, np.nan))[class_weights > 0]
        return np.array([auroc, auprc, recall.mean(), weights @ self._squares / weights.sum()])

    def association(self, order: NDArray[np.intp]) -> float:
        """AUROC minus .5 if the labels are those of the cases ``order`` ``[N]``; NaN if it is not defined."""
        areas = [_areas(one[order], rank, np.ones(len(order))) for one, rank in self._ranks]
        return float(np.mean([pair[0] - 0.5 for pair in areas if pair is not None] or np.nan))

    def intervals(self, draws: Floats, groups: Sequence[Any] | NDArray[Any]) -> list[tuple[float, float]]:
        """The 95% interval of each score, by :func:`bounded_interval`, from the draws of :func:`bootstrapped`."""
        values, num = self(np.ones(len(self.truth))), patients_of_rarest(self.truth, np.asarray(groups))
        tops = (1.0, 1.0, 1.0, 1.0 if len(self._ranks) == 1 else 2.0)
        columns = zip(values, draws.T, tops, strict=True)
        return [bounded_interval(value, column, num, top) for value, column, top in columns]


class NumberScores:
    """R2 and mean absolute error of predicted numbers, for any weights of the cases.

    Args:
        truth: ``[N]``, the true numbers.
        predicted: ``[N]``, the predicted numbers.
        baseline: ``[N]``, what R2 compares the predictions with, such as the mean of each fold's training cases; None:
            the mean of the given cases, as in scikit-learn, which lowers R2 by about 1 / N in cross-validation.

    Example:
        >>> scores = NumberScores([1, 2, 3], [1, 2, 4])
        >>> dict(zip(scores.metrics, scores(np.ones(3)).round(3).tolist()))
        {'r2': 0.5, 'mae': 0.333}
    """

    metrics = ("r2", "mae")
    perfect = (1.0, 0.0)

    def __init__(self, truth: ArrayLike, predicted: ArrayLike, baseline: ArrayLike | None = None) -> None:
        self.truth = np.asarray(truth, np.float64)
        self.baseline = None if baseline is None else np.asarray(baseline, np.float64)
        self.error = self.truth - np.asarray(predicted, np.float64)

    def __call__(self, weights: Floats) -> Floats:
        """Both scores for weights ``[N]``; R2 is NaN if the truth is the same for all cases."""
        baseline = np.average(self.truth, weights=weights) if self.baseline is None else self.baseline
        total = float(weights @ (self.truth - baseline) ** 2)
        r2 = 1 - float(weights @ self.error**2) / total if total > 0 else float("nan")
        return np.array([r2, weights @ np.abs(self.error) / weights.sum()])

    def association(self, order: NDArray[np.intp]) -> float:
        """What the predictions add to the baseline, times the true numbers of the cases ``order`` ``[N]``."""
        added = self.truth - self.error - (0 if self.baseline is None else self.baseline)
        return float(added @ (self.truth - self.truth.mean())[order])

    def intervals(self, draws: Floats, groups: Sequence[Any] | NDArray[Any]) -> list[tuple[float, float]]:
        """The 95% interval of each score: percentiles of the draws."""
        return [interval(column) for column in draws.T]


def bootstrapped_mean(values: Floats, groups: Sequence[Any] | NDArray[Any], seed: int = 0) -> Floats:
    """The mean of ``values`` ``[N]`` in the draws of :func:`bootstrapped`: ``[draws]``."""
    return bootstrapped(lambda weights: np.average(values, weights=weights, keepdims=True), groups, seed)[:, 0]


def bootstrapped(
    scores: Callable[[Floats], Floats],
    groups: Sequence[Any] | NDArray[Any],
    seed: int = 0,
    num_folds: int = 1,
    perfect: Any = None,
    num_draws: int = 1000,
) -> Floats:
    """The scores ``[draws, metrics]`` in bootstrap draws of groups, which are the same for all predictions.

    With several folds, the draws are stretched. ``perfect``: the best possible score (or one for each), which
    stretched draws do not exceed (1 for R2, 0 for MAE).
    """
    member = numbered_groups(groups)
    num_groups = int(member.max()) + 1
    generator = np.random.default_rng(seed)
    draws = (
        np.bincount(generator.integers(num_groups, size=num_groups), minlength=num_groups) for _ in range(num_draws)
    )
    values = np.array([scores(draw[member].astype(np.float64)) for draw in draws])
    if num_folds < 2:
        return values
    score, factor = scores(np.ones(len(member))), _stretch(num_folds)
    if perfect is None:
        return np.asarray(score + factor * (values - score))
    left = perfect - score + 1e-300  # not 0
    return np.asarray(perfect - left * ((perfect - values) / left) ** factor)


def _stretch(num_folds: int) -> float:
    """Models of several folds share most training cases, which draws do not show (Nadeau and Bengio 2003)."""
    return (1 + num_folds / (num_folds - 1)) ** 0.5 if num_folds > 1 else 1.0


def p_value(
    scores: ClassScores | NumberScores, groups: Sequence[Any] | NDArray[Any], seed: int = 0, num_folds: int = 1
) -> float | None:
    """How often predictions of held-out cases fit random labels as well as theirs: a one-sided permutation test.

    Each draw gives the labels of a group, such as a patient, to another one. In one split, the test is exact. In
    cross-validation, every case also trains the predictions of others, so labels and predictions vary together: for a
    linear model, their association has twice the variance that permutations show. Draws are stretched by more. None
    for more than 500 groups.

    Example:
        >>> labels = np.repeat([0, 1], 10)
        >>> scores = ClassScores(labels, np.eye(2)[labels])
        >>> p_value(scores, range(20)) < 0.001, p_value(scores, labels) > 0.4  # of 20 patients, and of 2
        (True, True)
    """
    member = numbered_groups(groups)
    if member.max() >= _MOST_PERMUTED:
        return None
    orders = _permutations(member, np.random.default_rng(seed))
    least = scores.association(np.arange(len(scores.truth))) / _stretch(num_folds)
    is_less = [scores.association(order) < least - 1e-9 * abs(least) for order in orders]
    return (1 + is_less.count(False)) / (1 + len(is_less))


def is_above_chance(row: Mapping[str, Any], num_labels: int = 1) -> bool:
    """Whether ``score`` is above chance: by ``p``, or by ``low``, the lower end of its interval."""
    chance, p = CHANCE[row["metric"]], row.get("p")
    if row["score"] is None or row["score"] <= chance:
        return False
    return bool((row["low"] is not None and row["low"] > chance) or (p is not None and p < 0.05 / num_labels))


def _permutations(member: NDArray[np.intp], generator: np.random.Generator) -> Iterator[NDArray[np.intp]]:
    """Random orders of cases: each group gets cases of another one, some twice if this has fewer."""
    sizes, places = np.bincount(member), np.argsort(member, kind="stable")
    starts = np.cumsum(sizes) - sizes
    number, order = np.arange(len(member)) - starts[member[places]], np.empty_like(places)
    for _ in range(_NUM_PERMUTATIONS):
        cases = np.lexsort((generator.random(len(member)), member))
        other = generator.permutation(len(sizes))[member[places]]
        order[places] = cases[starts[other] + number % sizes[other]]
        yield order


def with_interval(
    scores: ClassScores | NumberScores, groups: Sequence[Any] | NDArray[Any], seed: int = 0, num_folds: int = 1
) -> tuple[float, float, float]:
    """The main score, and the ends of its 95% interval from a bootstrap over groups ``[N]``."""
    low, high = scores.intervals(bootstrapped(scores, groups, seed, num_folds, scores.perfect), groups)[0]
    return float(scores(np.ones(len(scores.truth)))[0]), low, high


def plain(value: float) -> float | None:
    """A number for JSON, which has no NaN."""
    return float(value) if np.isfinite(value) else None


def interval(draws: Floats) -> tuple[float, float]:
    """The 2.5 and 97.5 percentiles of the draws in which a score is defined; NaN if it never is."""
    if np.isnan(draws).all():
        return float("nan"), float("nan")
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return float(low), float(high)


def patients_of_rarest(truth: NDArray[Any], patients: NDArray[Any]) -> int:
    """The patients of the class that has the fewest."""
    return min(len(np.unique(patients[truth == code])) for code in np.unique(truth))


def bounded_interval(value: float, draws: Floats, num_patients: int | None, top: float = 1) -> tuple[float, float]:
    """The 95% interval of a score from 0 to ``top``, such as AUROC: a t interval of its logit; None: percentiles."""
    from scipy.special import expit, logit

    if num_patients is None or np.isnan(draws).all():
        return interval(draws)
    if num_patients < 2:
        return 0.0, float(top)
    # percentiles are too narrow where scores are high and patients few: at .99 and 20 patients they cover 63 %
    least = _least_error(num_patients)
    share = float(np.clip(value / top, least, 1 - least))
    half = _half_width(draws / top, num_patients) / (share * (1 - share))
    low, high = top * expit(logit(share) + np.array([-half, half]))
    return 0.0 if share == least else float(low), float(top) if share == 1 - least else float(high)


def difference_interval(value: float, draws: Floats, num_patients: int | None) -> tuple[float, float]:
    """The 95% t interval of a paired difference of two AUROCs, in draws of :func:`bootstrapped`; None: percentiles."""
    if num_patients is None or np.isnan(draws).all():
        return interval(draws)
    half = _half_width(draws, num_patients) if num_patients > 1 else 1.0
    return max(value - half, -1.0), min(value + half, 1.0)


def _half_width(draws: Floats, num_patients: int) -> float:
    from scipy import stats

    error = max(float(np.nanstd(draws)) * (num_patients / (num_patients - 1)) ** 0.5, _least_error(num_patients))
    return float(stats.t.ppf(0.975, num_patients - 1)) * error


def _least_error(num_patients: int) -> float:
    """A quarter of a patient: the lower end of a perfect score is then about that of ``1 - 2 / num_patients``."""
    return 0.25 / num_patients


def score_with_interval(
    metric: Literal["auroc", "r2"],
    target: ArrayLike,
    predicted: ArrayLike,
    groups: Sequence[Any] | None = None,
    seed: int = 0,
) -> tuple[float, float, float]:
    """The score of given predictions, with its 95% interval from a bootstrap; NaN if the target is always the same.

    Args:
        metric: ``auroc``, for a target of 0 and 1 and predictions that rank the cases, or ``r2``.
        target: ``[N]``.
        predicted: ``[N]``.
        groups: ``[N]``, such as patients; the bootstrap then draws groups instead of cases.
        seed: random seed of the bootstrap.

    Returns:
        The score, and the lower and upper end of the interval.

    Example:
        >>> score, low, high = score_with_interval("auroc", [0, 1] * 20, np.arange(40) % 2)
        >>> score, round(low, 2), high
        (1.0, 0.9, 1.0)
    """
    prediction = np.asarray(predicted, np.float64)
    both = np.stack([-prediction, prediction], axis=1)
    scores = NumberScores(target, prediction) if metric == "r2" else ClassScores(target, both)
    return with_interval(scores, np.arange(len(prediction)) if groups is None else groups, seed)


def _areas(is_class: Floats, rank: NDArray[np.intp], weights: Floats) -> tuple[float, float] | None:
    """Areas under the ROC and the precision-recall curve (average precision); None unless both classes have cases."""
    inside, outside = np.bincount(rank, weights * is_class)[::-1], np.bincount(rank, weights * (1 - is_class))[::-1]
    positives, negatives = inside.sum(), outside.sum()
    if not positives * negatives > 0:
        return None
    true_positives, false_positives = np.cumsum(inside), np.cumsum(outside)  # from the highest score down
    auroc = inside @ (negatives - false_positives + outside / 2) / (positives * negatives)
    precision = true_positives / np.maximum(true_positives + false_positives, np.finfo(float).tiny)
    return float(auroc), float(inside @ precision / positives)
