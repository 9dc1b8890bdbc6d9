"""DCI (Eastwood and Williams, ICLR 2018): do single dimensions of z_sem stand for single known factors?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_diffae.errors import ConfigError
from monai_diffae.latents.statistics import LatentStatistics, checked_codes

Floats = NDArray[np.float64]

_FOLDS, _MOST_ITERATIONS, _LARGEST_P = 5, 20_000, 0.01


@dataclass(frozen=True)
class Disentanglement:
    """The result of :func:`dci`.

    Attributes:
        disentanglement: 1 if every dimension matters for a single factor only, 0 if for all alike.
        completeness: 1 if a single dimension tells each factor, 0 if all dimensions tell it alike.
        informativeness: R2 of the factors of unseen cases, predicted linearly, averaged over the factors.
    """

    disentanglement: float
    completeness: float
    informativeness: float


def dci(z: ArrayLike, factors: ArrayLike, unseen_z: ArrayLike, unseen_factors: ArrayLike) -> Disentanglement:
    """Measure disentanglement, completeness and informativeness with a lasso for each factor.

    The importance of a dimension for a factor is the size of its coefficient, with z_sem and factors normalised. The
    strength of each lasso is chosen by cross-validation over the cases that it is fitted to. A factor whose
    unseen values do not correlate with the predicted ones (p above .01, one-sided) has no importance: the few
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
    from sklearn.linear_model import LassoCV
    from sklearn.metrics import r2_score

    x, y = checked_codes(z, num_least=2 * _FOLDS), checked_codes(factors, num_least=2 * _FOLDS)
    unseen_x = checked_codes(unseen_z, x.shape[1], num_least=2)
    unseen_y = checked_codes(unseen_factors, y.shape[1], num_least=2)
    if len(x) != len(y) or len(unseen_x) != len(unseen_y) or y.shape[1] < 2:
        raise ConfigError("factors: give the factors of every case, at least two of them")
    if (np.ptp(y, axis=0) == 0).any() or (np.ptp(unseen_y, axis=0) == 0).any():
        raise ConfigError("factors: one is the same for all cases; leave it out")
    of_z, of_factors = LatentStatistics.of(x), LatentStatistics.of(y)
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
    """Disentanglement and completeness of an importance matrix ``[D, K]`` of dimensions for factors, at least 0.

    A dimension's score is 1 minus the entropy of its importances, in units of the largest possible entropy, and is
    weighted by the dimension's share of the total importance; a factor's score likewise, without weights. Both are 0
    if nothing is important.

    Example:
        >>> scores_of_importance([[1, 0], [1, 0], [0, 2]])
        (1.0, 0.68...)
    """
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
