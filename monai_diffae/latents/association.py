"""Regressions of many components on a variable and covariates, with errors clustered by patient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_diffae.errors import ConfigError
from monai_diffae.latents.neighbors import numbered_groups
from monai_diffae.latents.statistics import Floats

_COLLINEAR = 1e-5  # of a column's length: what is left of it beside the others
_SEPARATED = 15.0  # log odds per standard deviation; no association of a scan with a class is that strong
_MEDIAN_CHI2 = 0.4549364  # of one degree of freedom


@dataclass(frozen=True, eq=False)
class Associations:
    """The associations of K components with one variable.

    Attributes:
        effect: ``[K]``, the coefficient of the variable, or of the component in a logistic regression; NaN if the
            variable has more than one column.
        low: ``[K]``, the lower end of the 95 % interval of the effect.
        high: ``[K]``, its upper end.
        p: ``[K]``, the p-value; NaN if there is no estimate.
        share: ``[K]``, the share of the component's variance beside the covariates that the variable explains (partial
            R2); NaN in a logistic regression.
    """

    effect: Floats
    low: Floats
    high: Floats
    p: Floats
    share: Floats


def linear_associations(
    components: ArrayLike, variable: ArrayLike, covariates: Mapping[str, ArrayLike], groups: ArrayLike
) -> Associations:
    """Regress each component on a variable and covariates (ordinary least squares), with errors clustered by group.

    Effects and p-values equal those of statsmodels' ``OLS(...).fit(cov_type="cluster", use_t=True)``: the covariance is
    multiplied by ``G / (G - 1) * (N - 1) / (N - P)`` for G groups and P coefficients, and t has ``G - 1`` degrees of
    freedom. A variable with several columns, such as the indicators of classes, has one F test.

    Args:
        components: ``[N, K]``.
        variable: ``[N]`` or ``[N, Q]``.
        covariates: ``[N]`` or ``[N, C]`` each, by name; the constant is added.
        groups: ``[N]``, such as patients.

    Raises:
        ConfigError: a covariate or the variable is constant or a combination of the others, or there are too few
            groups.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> age = rng.normal(size=200)
        >>> components = rng.normal(size=(200, 2)) + np.outer(age, [0.5, 0.0])
        >>> linear_associations(components, age, {"sex": rng.integers(2, size=200)}, np.arange(200) // 2).p < 0.001
        array([ True, False])
    """
    from scipy import stats

    member = numbered_groups(groups)
    order, num_groups = np.argsort(member, kind="stable"), int(member.max()) + 1
    starts = np.flatnonzero(np.r_[True, np.diff(member[order]) > 0])
    basis = _basis({name: _columns(values)[order] for name, values in covariates.items()}, len(order))
    x, y = _without(_columns(variable)[order], basis), _without(np.asarray(components, np.float64)[order], basis)
    _check_rank(x, _columns(variable)[order], "the variable")
    num_cases, num_columns = x.shape
    num_coefficients = basis.shape[1] + num_columns
    if num_groups <= num_coefficients:
        raise ConfigError(f"{num_groups} patients are too few for {num_coefficients} coefficients")
    weights = np.linalg.pinv(x).T  # [N, Q]
    slopes = weights.T @ y
    residuals = y - x @ slopes
    scores = np.stack([np.add.reduceat(each[:, None] * residuals, starts) for each in weights.T])  # [Q, G, K]
    correction = num_groups / (num_groups - 1) * (num_cases - 1) / (num_cases - num_coefficients)
    covariance = correction * np.einsum("qgk,rgk->kqr", scores, scores, optimize=True)
    total = np.square(y).sum(axis=0)
    share = 1 - np.square(residuals).sum(axis=0) / np.where(total > 0, total, np.nan)
    if num_columns == 1:
        return _with_t(slopes[0], np.sqrt(covariance[:, 0, 0]), num_groups - 1, share)
    is_estimated = np.linalg.cond(covariance) < 1 / np.finfo(float).eps
    f = np.full(len(covariance), np.nan)
    solved = np.linalg.solve(covariance[is_estimated], slopes.T[is_estimated][:, :, None])[:, :, 0]
    f[is_estimated] = (slopes.T[is_estimated] * solved).sum(axis=1) / num_columns
    nothing = np.full(len(f), np.nan)
    return Associations(nothing, nothing, nothing, stats.f.sf(f, num_columns, num_groups - 1), share)


def logistic_associations(
    components: ArrayLike, is_positive: ArrayLike, covariates: Mapping[str, ArrayLike], groups: ArrayLike
) -> Associations:
    """Regress a class on each component and covariates (logistic regression of statsmodels), clustered by group.

    Effects are log odds ratios per unit of the component. Where the component or the covariates separate the classes,
    there is no estimate, and all values are NaN.

    Args:
        components: ``[N, K]``.
        is_positive: ``[N]``, the class.
        covariates: ``[N]`` or ``[N, C]`` each, by name; the constant is added.
        groups: ``[N]``, such as patients.

    Raises:
        ConfigError: as in :func:`linear_associations`.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(300, 1))
        >>> y = np.random.default_rng(1).random(300) < 1 / (1 + np.exp(-x[:, 0]))
        >>> bool(logistic_associations(x, y, {}, np.arange(300)).low[0] > 0)
        True
    """
    member, y = numbered_groups(groups), np.asarray(is_positive, np.float64)
    basis = _basis({name: _columns(values) for name, values in covariates.items()}, len(y)) * np.sqrt(len(y))
    if int(member.max()) + 1 <= basis.shape[1] + 1:
        raise ConfigError(f"{int(member.max()) + 1} patients are too few for {basis.shape[1] + 1} coefficients")
    fits = np.array([_logistic(column, y, basis, member) for column in np.asarray(components, np.float64).T])
    return _with_t(fits[:, 0], fits[:, 1], int(member.max()), np.full(len(fits), np.nan))


def _logistic(component: Floats, y: Floats, basis: Floats, member: NDArray[np.intp]) -> tuple[float, float]:
    """The coefficient of a component and its standard error; NaN if the classes are separated."""
    import warnings

    from statsmodels.discrete.discrete_model import Logit

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # separation is found below
        try:
            model = Logit(y, np.column_stack([component, basis]))
            fit = model.fit(disp=0, maxiter=50, cov_type="cluster", cov_kwds={"groups": member})
        except np.linalg.LinAlgError:
            return np.nan, np.nan
    if not fit.mle_retvals["converged"] or np.abs(fit.params[1:]).max() > _SEPARATED:
        return np.nan, np.nan
    is_separated = abs(fit.params[0]) * component.std() > _SEPARATED or not np.isfinite(fit.bse[0])
    return (np.nan, np.nan) if is_separated else (float(fit.params[0]), float(fit.bse[0]))


def _with_t(effect: Floats, error: Floats, df: int, share: Floats) -> Associations:
    from scipy import stats

    known = np.where(error > 0, error, np.nan)  # 0: the component is constant
    half = stats.t.ppf(0.975, df) * known
    return Associations(effect, effect - half, effect + half, 2 * stats.t.sf(np.abs(effect) / known, df), share)


def q_values(p: ArrayLike) -> Floats:
    """The q-values of p-values (Benjamini and Hochberg): the false discovery rate up to each. NaN stays NaN.

    Example:
        >>> q_values([0.01, np.nan, 0.04, 0.03])
        array([0.03,  nan, 0.04, 0.04])
    """
    from scipy import stats

    values = np.array(p, np.float64)
    is_known = ~np.isnan(values)
    if is_known.any():
        values[is_known] = stats.false_discovery_control(values[is_known])
    return values


def inflation(p: ArrayLike) -> float:
    """The inflation of test statistics: the median of chi-squared over that of true null hypotheses, which is 1.

    Example:
        >>> round(inflation((np.arange(1000) + 0.5) / 1000), 2)
        1.0
    """
    from scipy import stats

    return float(np.nanmedian(stats.chi2.isf(np.asarray(p, np.float64), 1)) / _MEDIAN_CHI2)


def rank_normal(values: ArrayLike) -> Floats:
    """Replace the values ``[N]`` or ``[N, K]`` of each column by normal quantiles of their ranks (Blom).

    Example:
        >>> rank_normal([10.0, 1e9, 20.0]).round(2)
        array([-0.82,  0.82,  0.  ])
    """
    from scipy import stats

    ranks = stats.rankdata(values, axis=0)
    return np.asarray(stats.norm.ppf((ranks - 0.375) / (len(ranks) + 0.25)), np.float64)


# -- designs -----------------------------------------------------------------------------------------------------------


def _columns(values: ArrayLike) -> Floats:
    columns = np.asarray(values, np.float64)
    return columns[:, None] if columns.ndim == 1 else columns


def _basis(covariates: Mapping[str, Floats], num_cases: int) -> Floats:
    """An orthonormal basis ``[N, 1 + C]`` of the constant and the covariates, the constant first."""
    basis = np.full((num_cases, 1), num_cases**-0.5)
    for name, columns in covariates.items():
        left = _without(columns, basis)
        _check_rank(left, columns, f"covariate '{name}'")
        basis = np.hstack([basis, np.linalg.qr(left)[0]])
    return basis


def _without(columns: Floats, basis: Floats) -> Floats:
    """What is left of columns beside a basis; twice, for the sake of rounding."""
    left = columns - basis @ (basis.T @ columns)
    return np.asarray(left - basis @ (basis.T @ left), np.float64)


def _check_rank(left: Floats, columns: Floats, name: str) -> None:
    lengths = np.linalg.norm(columns - columns.mean(axis=0), axis=0)
    is_constant = lengths <= 1e-12 * np.linalg.norm(columns, axis=0)
    if is_constant.any() or np.linalg.svd(left / lengths, compute_uv=False).min() < _COLLINEAR:
        what = "is constant" if is_constant.any() else "is a combination of the covariates before it"
        raise ConfigError(f"{name} {what}, among the cases with all values")
