"""What two representations of the same cases share: regression, CCA, Procrustes and CKA.

All scores but CKA are those of held-out patients (``groups``), as arrays ``[3, K]``: the score and the ends of its 95 %
interval, from a bootstrap over patients.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_diffae.latents.neighbors import numbered_groups
from monai_diffae.latents.probing.probes import grouped_folds
from monai_diffae.latents.probing.scores import bootstrapped
from monai_diffae.latents.statistics import Floats

_PENALTIES = np.logspace(-6, 3, 19)  # per case, of features with variance 1
_CASES_PER_COMPONENT = 5  # training patients per component in a canonical correlation analysis


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
    return _with_interval(lambda weights: 1 - weights @ sums[0] / (weights @ sums[1]), len(sums[0]), seed, len(folds))


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


def _with_interval(scores: Callable[[Floats], Floats], num_patients: int, seed: int, num_folds: int) -> Floats:
    draws = bootstrapped(scores, np.arange(num_patients), seed, num_folds)
    return np.vstack([scores(np.ones(num_patients)), np.nanpercentile(draws, [2.5, 97.5], axis=0)])
