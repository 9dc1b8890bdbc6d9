"""What a representation is worth beyond probes: its use, stability and disentanglement, and what two share."""

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_diffae.errors import ConfigError
from monai_diffae.latents.neighbors import nearest_neighbors, numbered_groups
from monai_diffae.latents.probing.probes import grouped_folds
from monai_diffae.latents.probing.scores import bootstrapped
from monai_diffae.latents.statistics import Floats, LatentStatistics, checked_codes, float64_codes

logger = logging.getLogger(__name__)

Numbers = NDArray[np.intp]
LEAST_USAGE = 1.1  # the ``z_sem_usage`` below which embeddings and edits are hardly worth anything
_MAX_PAIRS = 500_000  # the median over a random sample of this size is off by less than a thousandth
_AT_ONCE = 2**13
_FOLDS, _MOST_ITERATIONS, _LARGEST_P = 5, 20_000, 0.01
_PENALTIES = np.logspace(-6, 3, 19)  # per case, of features with variance 1
_CASES_PER_COMPONENT = 5  # training patients per component in a canonical correlation analysis


def warn_if_unused(z_sem_usage: float | None) -> None:
    """Log a warning if the decoder does hardly worse with the z_sem of another image."""
    if z_sem_usage is not None and z_sem_usage < LEAST_USAGE:
        logger.warning(
            "z_sem_usage %.3f: the decoder hardly uses z_sem, so embeddings and edits say little; train longer, or "
            "with fewer, larger pixels (monai-diffae plan)",
            z_sem_usage,
        )


@dataclass(frozen=True)
class Stability:
    """The result of :func:`stability`."""

    #: the median distance between the two z_sem of a case, divided by the median distance between different patients.
    #: 0: z_sem does not move; 1: it moves as far as to another patient. The second median is over all pairs of cases if
    #: there are at most 500,000 (707 cases), else over 500,000 pairs drawn with a fixed seed
    ratio: float
    ratio_90: float  #: the 90th percentile of the first distance, divided by the same median
    rank_1: float  #: the share of cases whose second z_sem is closer to their own than to that of any other patient
    num_cases: int  #: number of compared cases


def stability(
    z: ArrayLike,
    z_again: ArrayLike,
    patients: ArrayLike,
    scans: ArrayLike | None = None,
    slices: ArrayLike | None = None,
) -> Stability:
    """Compare normalised z_sem ``[N, D]`` with a second one of the same cases, or with other scans of the patients."""
    x = float64_codes(z, num_least=1)
    again = float64_codes(z_again, x.shape[1], num_least=1)
    patient = numbered_groups(patients)
    if scans is None:
        displacement = np.linalg.norm(again - x, axis=1)
    else:
        group = patient if slices is None else numbered_groups(patient * len(x) + numbered_groups(slices))
        displacement = _distance_to_other_scans(x, again, group, numbered_groups(scans))
    compared = np.flatnonzero(np.isfinite(displacement))
    usual_distance = _distance_between_patients(x, patient, compared)
    if usual_distance == 0:
        raise ConfigError("stability: most patients have the same z_sem; train the encoder")
    others = nearest_neighbors(again[compared], x, 1, patient[compared], patient)
    is_nearest = displacement[compared] < others.distances[:, 0]
    ratio, ratio_90 = np.percentile(displacement[compared], [50, 90]) / usual_distance
    return Stability(float(ratio), float(ratio_90), float(is_nearest.mean()), len(compared))


def _distance_to_other_scans(x: Floats, again: Floats, group: Numbers, scan: Numbers) -> Floats:
    """The distance (N,) from each case to the nearest case of its group in another scan; infinite if there is none."""
    distance = np.empty(len(x))
    for i in range(len(x)):
        others = x[(group == group[i]) & (scan != scan[i])]
        distance[i] = np.linalg.norm(others - again[i], axis=1).min(initial=np.inf)
    return distance


def _distance_between_patients(x: Floats, patient: Numbers, compared: Numbers) -> float:
    """The median distance from the compared cases to cases of other patients, over all pairs or a sample of them."""
    num = len(compared) * len(x)
    pairs = np.arange(num) if num <= _MAX_PAIRS else np.random.default_rng(0).integers(num, size=_MAX_PAIRS)
    rows, others = compared[pairs // len(x)], pairs % len(x)
    pairs = np.stack([rows, others])[:, patient[rows] != patient[others]]
    parts = np.split(pairs, range(_AT_ONCE, pairs.shape[1], _AT_ONCE), axis=1)
    return float(np.median(np.concatenate([np.linalg.norm(x[one] - x[other], axis=1) for one, other in parts])))


@dataclass(frozen=True)
class Disentanglement:
    """The result of :func:`dci`."""

    disentanglement: float  #: 1 if every dimension matters for a single factor only, 0 if for all alike
    completeness: float  #: 1 if a single dimension tells each factor, 0 if all dimensions tell it alike
    informativeness: float  #: R2 of the factors of unseen cases, predicted linearly, averaged over the factors


def dci(z: ArrayLike, factors: ArrayLike, unseen_z: ArrayLike, unseen_factors: ArrayLike) -> Disentanglement:
    """Measure disentanglement, completeness and informativeness (Eastwood and Williams, ICLR 2018).

    The importance of a dimension for a factor is the size of its coefficient in a lasso, with z_sem and factors
    normalised. The strength of each lasso is chosen by cross-validation over the cases that it is fitted to. A factor
    whose unseen values do not correlate with the predicted ones (p above .01, one-sided) has no importance: the few
    coefficients that noise leaves would look like disentanglement.

    Args:
        z: ``[N, D]``, the cases that the lassos are fitted to; N is at least 10.
        factors: ``[N, K]``, their known factors; K is at least 2.
        unseen_z: ``[M, D]``, other cases.
        unseen_factors: ``[M, K]``.

    Raises:
        ConfigError: the shapes do not match, there are too few cases, or a factor is the same for all.

    Example:
        >>> factors = np.random.default_rng(0).normal(size=(200, 3))
        >>> aligned = dci(factors[:100], factors[:100], factors[100:], factors[100:])
        >>> round(aligned.disentanglement, 2), round(aligned.completeness, 2), round(aligned.informativeness, 2)
        (1.0, 1.0, 1.0)
    """
    from scipy.stats import pearsonr
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LassoCV
    from sklearn.metrics import r2_score

    x, y = checked_codes(z, num_least=2 * _FOLDS), checked_codes(factors, num_least=2 * _FOLDS)
    unseen_x = checked_codes(unseen_z, x.shape[1], num_least=2)
    unseen_y = checked_codes(unseen_factors, y.shape[1], num_least=2)
    if (np.ptp(y, axis=0) == 0).any() or (np.ptp(unseen_y, axis=0) == 0).any():
        raise ConfigError("factors: one is the same for all cases; leave it out")
    of_z, of_factors = LatentStatistics.of(x), LatentStatistics.of(y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of the weakest penalties
        fitted = [
            LassoCV(cv=_FOLDS, max_iter=_MOST_ITERATIONS).fit(of_z.normalise(x), values)
            for values in of_factors.normalise(y).T
        ]
    predicted = np.stack([lasso.predict(of_z.normalise(unseen_x)) for lasso in fitted], axis=1)
    truth = of_factors.normalise(unseen_y)
    is_predicted = [
        np.ptp(values) > 0 and pearsonr(values, true, alternative="greater").pvalue < _LARGEST_P
        for values, true in zip(predicted.T, truth.T, strict=True)
    ]
    importance = np.abs([lasso.coef_ for lasso in fitted]).T * is_predicted
    return Disentanglement(*scores_of_importance(importance), float(r2_score(truth, predicted)))


def scores_of_importance(importance: ArrayLike) -> tuple[float, float]:
    """Disentanglement and completeness of an importance matrix ``[D, K]`` of dimensions for factors; 0 without any."""
    matrix = np.asarray(importance, np.float64)
    total = matrix.sum()
    if total == 0:
        return 0.0, 0.0
    disentanglement = matrix.sum(axis=1) / total @ _concentration(matrix)
    return float(disentanglement), float(_concentration(matrix.T).mean())


def _concentration(rows: Floats) -> Floats:
    """1 minus the entropy of each row, in units of the largest possible entropy; 0 for a row of zeros."""
    from scipy.stats import entropy

    shares = np.where(rows.any(axis=1, keepdims=True), rows, 1)
    return np.asarray(1 - entropy(shares, base=rows.shape[1], axis=1))


# -- what two representations of the same cases share: regression, CCA, Procrustes and CKA --------------------------
# All scores but CKA are those of held-out patients (``groups``), as arrays ``[3, K]``: the score and the ends of its
# 95 % interval, from a bootstrap over patients.


def explained_variance(target: Floats, features: Floats, groups: ArrayLike, seed: int = 0) -> Floats:
    """R2 of ridge regressions of each target ``[N, K]`` on features ``[N, D]``: ``[3, K + 1]``, the last of all."""
    return _r2(target, lambda train, test: _ridge(features[train], target[train], features[test]), groups, seed)


def _r2(y: Floats, predict: Callable[..., Floats], groups: ArrayLike, seed: int, first: int = 0) -> Floats:
    """R2 of each column from ``first`` on and of all together; ``predict`` predicts test rows from training rows."""
    error, total, folds = np.empty_like(y), np.empty_like(y), grouped_folds(np.empty(0), np.asarray(groups), None, seed)
    for train, test in folds:
        error[test] = np.square(y[test] - predict(train, test))
        total[test] = np.square(y[test] - y[train].mean(axis=0))
    sums = [_per_patient(np.column_stack([each, each.sum(axis=1)])[:, first:], groups) for each in (error, total)]
    return _with_interval(
        lambda weights: 1 - weights @ sums[0] / (weights @ sums[1]), len(sums[0]), seed, len(folds), 1
    )


def _ridge(x: Floats, y: Floats, new: Floats) -> Floats:
    """The predictions for new cases of ridge regressions, each with the penalty of generalised cross-validation."""
    mean, scale, intercept = x.mean(axis=0), x.std(axis=0), y.mean(axis=0)
    y = y - intercept
    scale = np.where(scale > 0, scale, 1)
    x, new = (x - mean) / scale, (new - mean) / scale
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    values, projected = values.clip(0), vectors.T @ (x.T @ y) / len(x)  # [D, K]
    shrunk = 1 / (values + _PENALTIES[:, None])  # [penalties, D]
    left = np.square(y).mean(axis=0) - (2 * shrunk - values * shrunk**2) @ np.square(projected)
    freedom = np.maximum(1 - (1 + shrunk @ values) / len(x), 1e-3)[:, None]
    best = _PENALTIES[np.argmin(left / freedom**2, axis=0)]
    return np.asarray(intercept + new @ vectors @ (projected / (values[:, None] + best)), np.float64)


def canonical_correlations(a: Floats, b: Floats, groups: ArrayLike, counts: tuple[int, int], seed: int = 0) -> Floats:
    """The correlations of canonical variates of ``counts`` principal components, the strongest first; no signs.

    Components and variates are those of the training patients of each fold, at least five patients per component; the
    variates of all folds are scaled and pooled.
    """
    member = numbered_groups(groups)
    folds = grouped_folds(np.empty(0), member, None, seed)
    fewest = min(len(np.unique(member[train])) for train, _ in folds)
    sizes = [max(1, min(size, fewest // _CASES_PER_COMPONENT)) for size in counts]
    num = min(*sizes, a.shape[1], b.shape[1])
    u, v = np.empty((len(a), num)), np.empty((len(a), num))
    for train, test in folds:
        x, y = (_whitened(each, train, size) for each, size in zip((a, b), sizes, strict=True))
        left, _, right = np.linalg.svd(x[train].T @ y[train])
        u[test], v[test] = (x[test] @ left)[:, :num], (y[test] @ right.T)[:, :num]
    uv, uu, vv = (_per_patient(each, member) for each in (u * v, u * u, v * v))
    return _with_interval(
        lambda weights: weights @ uv / np.sqrt((weights @ uu) * (weights @ vv)), len(uv), seed, len(folds)
    ).clip(-1, 1)


def _whitened(codes: Floats, train: NDArray[np.intp], count: int) -> Floats:
    """The first principal components of all cases, with variance 1 among the training cases."""
    mean = codes[train].mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(codes[train] - mean, rowvar=False).reshape(codes.shape[1], -1))
    axes = vectors[:, ::-1][:, :count] / np.sqrt(np.maximum(values[::-1][:count], 1e-12 * values[-1]))
    return np.asarray((codes - mean) @ axes)


def procrustes(a: Floats, b: Floats, groups: ArrayLike, seed: int = 0) -> Floats:
    """How much of ``a`` ``[N, D]`` is ``b`` ``[N, E]`` after one rotation, also to D, and one scale: R2, ``[3]``."""

    def rotate(train: NDArray[np.intp], test: NDArray[np.intp]) -> Floats:
        mean, other = a[train].mean(axis=0), b - b[train].mean(axis=0)
        left, sizes, right = np.linalg.svd(other[train].T @ (a[train] - mean), full_matrices=False)
        return np.asarray(mean + other[test] @ (left @ right) * sizes.sum() / np.square(other[train]).sum())

    return _r2(a, rotate, groups, seed, a.shape[1])[:, 0]


def linear_cka(a: Floats, b: Floats) -> float:
    """The linear centred kernel alignment without bias (Song et al. 2012): 1 for the same distances, 0 by chance."""
    x, y = a - a.mean(axis=0), b - b.mean(axis=0)
    return float(_hsic(x, y) / np.sqrt(_hsic(x, x) * _hsic(y, y)))


def _hsic(x: Floats, y: Floats) -> float:
    """The unbiased HSIC of centred codes, without a constant factor; the matrices of N x N are never made."""
    num, first, second = len(x), np.square(x).sum(axis=1), np.square(y).sum(axis=1)
    products = np.square(x.T @ y).sum() - first @ second
    return float(products + first.sum() * second.sum() / ((num - 1) * (num - 2)) - 2 / (num - 2) * (first @ second))


def _per_patient(values: Floats, groups: ArrayLike) -> Floats:
    """The sums of values ``[N, K]`` over the cases of each patient."""
    member = numbered_groups(groups)
    sums = np.zeros((int(member.max()) + 1, values.shape[1]))
    np.add.at(sums, member, values)
    return sums


def _with_interval(
    scores: Callable[[Floats], Floats], num_patients: int, seed: int, num_folds: int, perfect: float | None = None
) -> Floats:
    draws = bootstrapped(scores, np.arange(num_patients), seed, num_folds, perfect)
    return np.vstack([scores(np.ones(num_patients)), np.nanpercentile(draws, [2.5, 97.5], axis=0)])
