"""What a representation is worth beyond probes: whether the decoder uses it, its stability and disentanglement."""

import logging
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_diffae.errors import ConfigError
from monai_diffae.latents.neighbors import nearest_neighbors, numbered_groups
from monai_diffae.latents.statistics import Floats, LatentStatistics, checked_codes

logger = logging.getLogger(__name__)

Numbers = NDArray[np.intp]
LEAST_USAGE = 1.1  # the ``z_sem_usage`` below which embeddings and edits are hardly worth anything
_MAX_PAIRS = 500_000  # the median over a random sample of this size is off by less than a thousandth
_AT_ONCE = 2**13
_FOLDS, _MOST_ITERATIONS, _LARGEST_P = 5, 20_000, 0.01


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
    x = checked_codes(z, num_least=1).astype(np.float64)
    again = checked_codes(z_again, x.shape[1], num_least=1).astype(np.float64)
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
    with warnings.catch_warnings(category=ConvergenceWarning, action="ignore"):  # of the weakest penalties
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
