"""What two representations of the same cases share: regression, CCA, Procrustes and CKA.

All scores but CKA are those of held-out patients, as arrays ``[3, K]``: the score and the ends of its 95 % interval,
from a bootstrap over patients.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_diffae.latents.neighbors import numbered_groups
from monai_diffae.latents.probing.probes import Folds, grouped_folds
from monai_diffae.latents.probing.scores import bootstrapped
from monai_diffae.latents.statistics import Floats

_PENALTIES = np.logspace(-6, 3, 19)  # per case, of features with variance 1
_CASES_PER_COMPONENT = 5  # training patients per component in a canonical correlation analysis


def patient_folds(groups: ArrayLike, seed: int = 0) -> Folds:
    """Up to five folds of patients, as training and test rows."""
    member = numbered_groups(groups)
    return grouped_folds(np.zeros(len(member)), member, None, seed)


def explained_variance(target: ArrayLike, features: ArrayLike, groups: ArrayLike, seed: int = 0) -> Floats:
    """How much of each target the features explain, by ridge regression: R2.

    The regularisation of each target is chosen by generalised cross-validation among the training cases.

    Args:
        target: ``[N, K]``, such as the components of one model.
        features: ``[N, D]``, such as z_sem of another model.
        groups: ``[N]``, such as patients, which are never on both sides.
        seed: random seed of folds and bootstrap.

    Returns:
        ``[3, K + 1]``; the last one is that of all targets together, in proportion to their variances.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(300, 4))
        >>> explained_variance(x[:, :2] @ [[1, 0], [1, 1]], x, np.arange(300))[0].round(2)
        array([1., 1., 1.])
    """
    y, x = np.asarray(target, np.float64), np.asarray(features, np.float64)
    return _r2(y, lambda train, test: _ridge(x[train], y[train], x[test]), groups, seed)


def _r2(y: Floats, predict: Callable[..., Floats], groups: ArrayLike, seed: int, first: int = 0) -> Floats:
    """R2 of each column from ``first`` on and of all together; ``predict`` predicts test rows from training rows."""
    error, total, folds = np.empty_like(y), np.empty_like(y), patient_folds(groups, seed)
    for train, test in folds:
        error[test] = np.square(y[test] - predict(train, test))
        total[test] = np.square(y[test] - y[train].mean(axis=0))
    sums = [_per_patient(np.column_stack([each, each.sum(axis=1)])[:, first:], groups) for each in (error, total)]
    return _with_interval(lambda weights: 1 - weights @ sums[0] / (weights @ sums[1]), len(sums[0]), seed, len(folds))


def _ridge(x: Floats, y: Floats, new: Floats) -> Floats:
    """The predictions for new cases of ridge regressions, each with its own penalty."""
    mean, scale, intercept = x.mean(axis=0), x.std(axis=0), y.mean(axis=0)
    y = y - intercept
    scale = np.where(scale > 0, scale, 1)
    x, new = (x - mean) / scale, (new - mean) / scale
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    values, projected = values.clip(0), vectors.T @ (x.T @ y) / len(x)  # [D, K]
    left, degrees = np.empty((len(_PENALTIES), y.shape[1])), np.empty(len(_PENALTIES))
    for row, penalty in enumerate(_PENALTIES):
        shrunk = 1 / (values + penalty)
        explained = np.square(projected) * (2 * shrunk - values * shrunk**2)[:, None]
        left[row], degrees[row] = np.square(y).mean(axis=0) - explained.sum(axis=0), (values * shrunk).sum()
    freedom = np.maximum(1 - (1 + degrees) / len(x), 1e-3)[:, None]
    best = _PENALTIES[np.argmin(left / freedom**2, axis=0)]
    return np.asarray(intercept + new @ vectors @ (projected / (values[:, None] + best)), np.float64)


def canonical_correlations(
    a: ArrayLike, b: ArrayLike, groups: ArrayLike, counts: tuple[int, int], seed: int = 0
) -> Floats:
    """The correlations of canonical variates of two representations in held-out patients, the strongest pair first.

    Both are reduced to principal components first, all fitted to the training patients of each fold. The variates of
    all folds are scaled and pooled; a pair has no sign.

    Args:
        a: ``[N, D]``.
        b: ``[N, E]``, of the same cases.
        groups: ``[N]``, such as patients.
        counts: number of components of each; fewer if there are fewer than five training patients for each.
        seed: random seed of folds and bootstrap.

    Example:
        >>> a = np.random.default_rng(0).normal(size=(400, 3))
        >>> b = np.random.default_rng(1).normal(size=(400, 3))
        >>> b[:, 0] += 3 * a[:, 1]
        >>> (canonical_correlations(a, b, np.arange(400), (3, 3))[0] > 0.5).tolist()
        [True, False, False]
    """
    first, second, folds = np.asarray(a, np.float64), np.asarray(b, np.float64), patient_folds(groups, seed)
    member = numbered_groups(groups)
    fewest = min(len(np.unique(member[train])) for train, _ in folds)
    sizes = [max(1, min(size, fewest // _CASES_PER_COMPONENT)) for size in counts]
    num = min(*sizes, first.shape[1], second.shape[1])
    u, v = np.empty((len(first), num)), np.empty((len(first), num))
    for train, test in folds:
        (x, x_test), (y, y_test) = (
            _whitened(each, train, test, size) for each, size in zip((first, second), sizes, strict=True)
        )
        left, _, right = np.linalg.svd(x.T @ y)
        u[test], v[test] = (x_test @ left)[:, :num], (y_test @ right.T)[:, :num]
    uv, uu, vv = (_per_patient(each, groups) for each in (u * v, u * u, v * v))
    return _with_interval(
        lambda weights: weights @ uv / np.sqrt((weights @ uu) * (weights @ vv)), len(uv), seed, len(folds)
    ).clip(-1, 1)


def _whitened(codes: Floats, train: NDArray[np.intp], test: NDArray[np.intp], count: int) -> tuple[Floats, Floats]:
    """The first principal components of training and test cases, with variance 1 among the training cases."""
    mean = codes[train].mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(codes[train] - mean, rowvar=False).reshape(codes.shape[1], -1))
    axes = vectors[:, ::-1][:, :count] / np.sqrt(np.maximum(values[::-1][:count], 1e-12 * values[-1]))
    return (codes[train] - mean) @ axes, (codes[test] - mean) @ axes


def procrustes(a: ArrayLike, b: ArrayLike, groups: ArrayLike, seed: int = 0) -> Floats:
    """How much of ``a`` is ``b`` after one rotation and one scale: R2, ``[3]``.

    Args:
        a: ``[N, D]``.
        b: ``[N, E]``, of the same cases; the rotation also changes the number of dimensions.
        groups: ``[N]``, such as patients.
        seed: random seed of folds and bootstrap.

    Example:
        >>> a = np.random.default_rng(0).normal(size=(100, 3))
        >>> procrustes(a, 5 * a[:, ::-1], np.arange(100)).round(6)
        array([1., 1., 1.])
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)

    def rotate(train: NDArray[np.intp], test: NDArray[np.intp]) -> Floats:
        mean, other = first[train].mean(axis=0), second - second[train].mean(axis=0)
        left, sizes, right = np.linalg.svd(other[train].T @ (first[train] - mean), full_matrices=False)
        return np.asarray(mean + other[test] @ (left @ right) * sizes.sum() / np.square(other[train]).sum())

    return _r2(first, rotate, groups, seed, first.shape[1])[:, 0]


def linear_cka(a: ArrayLike, b: ArrayLike) -> float:
    """The linear centred kernel alignment of two representations ``[N, D]`` and ``[N, E]``, without bias.

    1: the same distances between cases; about 0 for independent representations, also if N is less than D (Song et al.
    2012; the plain estimate is then near 1).

    Example:
        >>> a, b = np.random.default_rng(0).normal(size=(2, 50, 200))
        >>> round(linear_cka(a, 3 * a), 3), abs(linear_cka(a, b)) < 0.1
        (1.0, True)
    """
    x, y = (np.asarray(each, np.float64) for each in (a, b))
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
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


def _with_interval(scores: Callable[[Floats], Floats], num_patients: int, seed: int, num_folds: int) -> Floats:
    draws = bootstrapped(scores, np.arange(num_patients), seed, num_folds)
    return np.vstack([scores(np.ones(num_patients)), np.nanpercentile(draws, [2.5, 97.5], axis=0)])
