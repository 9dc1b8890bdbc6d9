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
_ALONE = 1e-6  # share of a group's outcome that its own coefficient leaves
_SEPARATED = 15.0  # log odds per standard deviation; no association of a scan with a class is that strong
_CONSTANT = 1e-20  # variance of a component that never varies
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
    components: ArrayLike,
    variable: ArrayLike,
    covariates: Mapping[str, ArrayLike],
    groups: ArrayLike,
    *,
    small_samples: bool = True,
) -> Associations:
    """Regress each component on a variable and covariates (ordinary least squares), with errors clustered by group.

    Errors are CR2, and t has Satterthwaite's degrees of freedom (Bell and McCaffrey 2002), so that p-values also hold
    for few patients, rare classes and skewed numbers. A variable with several columns, such as the indicators of
    classes, has one F test (AHZ of Tipton and Pustejovsky 2015, doi:10.3102/1076998615606099).

    Args:
        components: ``[N, K]``.
        variable: ``[N]`` or ``[N, Q]``.
        covariates: ``[N]`` or ``[N, C]`` each, by name; the constant is added.
        groups: ``[N]``, such as patients.
        small_samples: False gives the values of statsmodels' ``OLS(...).fit(cov_type="cluster", use_t=True)``: CR1,
            and as many degrees of freedom as there are groups, minus 1.

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

    design = _Design.of(variable, covariates, groups)
    sizes, x, num_columns = design.sizes, design.x, design.x.shape[1]
    y = _without(np.asarray(components, np.float64)[design.order], design.basis)
    slopes = design.weights.T @ y
    residuals = y - x @ slopes
    total = np.square(y).sum(axis=0)
    share = 1 - np.square(residuals).sum(axis=0) / np.where(total > _CONSTANT * len(y), total, np.nan)
    if small_samples:
        weights, df = design.bias_reduced()
        correction = 1.0
    else:
        weights, df = design.weights, float(len(sizes) - 1)
        correction = len(sizes) / df * (len(y) - 1) / (len(y) - design.basis.shape[1] - num_columns)
    scores = np.stack([_sums(each[:, None] * residuals, sizes) for each in weights.T])  # [Q, G, K]
    covariance = correction * np.einsum("qgk,rgk->kqr", scores, scores, optimize=True)
    if num_columns == 1:
        return _with_t(slopes[0], np.where(np.isnan(share), np.nan, covariance[:, 0, 0]) ** 0.5, df, share)
    nothing, p = np.full(len(share), np.nan), np.full(len(share), np.nan)
    rest = df - num_columns + 1 if small_samples else df
    known = (np.linalg.cond(covariance) < 1 / np.finfo(float).eps) & ~np.isnan(share) & (rest > 0)
    solved = np.linalg.solve(covariance[known], slopes.T[known][:, :, None])[:, :, 0]
    f = (slopes.T[known] * solved).sum(axis=1) / num_columns * (rest / df)
    p[known] = stats.f.sf(f, num_columns, rest)
    return Associations(nothing, nothing, nothing, p, share)


@dataclass(frozen=True, eq=False)
class _Design:
    """A regression without its outcomes, with the rows in the order of their groups."""

    order: NDArray[np.intp]
    sizes: NDArray[np.intp]  # [G], rows of each group
    basis: Floats  # [N, 1 + C], orthonormal, of the constant and the covariates
    x: Floats  # [N, Q], the variable without what these explain
    weights: Floats  # [N, Q]; a coefficient is the sum of its column times the outcome

    @classmethod
    def of(cls, variable: ArrayLike, covariates: Mapping[str, ArrayLike], groups: ArrayLike) -> _Design:
        """The design of a variable, or an error that says why there is none."""
        member = numbered_groups(groups)
        order, columns = np.argsort(member, kind="stable"), _columns(variable)
        basis = _basis({name: _columns(values)[order] for name, values in covariates.items()}, len(order))
        x = _without(columns[order], basis)
        _check_rank(x, columns, "the variable")
        num_groups, num_coefficients = int(member.max()) + 1, basis.shape[1] + x.shape[1]
        if num_groups <= num_coefficients:
            raise ConfigError(f"{num_groups} patients are too few for {num_coefficients} coefficients")
        return cls(order, np.bincount(member), basis, x, np.asarray(np.linalg.pinv(x).T, np.float64))

    def bias_reduced(self) -> tuple[Floats, float]:
        """The weights of CR2, and Satterthwaite's degrees of freedom; see :func:`linear_associations`."""
        weights, sizes = self.weights, self.sizes
        adjusted, design = self._adjusted(), np.hstack([self.basis, np.linalg.qr(self.x)[0]])
        own = _sums(np.einsum("nq,nr->nqr", adjusted, adjusted).reshape(len(adjusted), -1), sizes)
        fitted = _sums(np.einsum("nq,np->nqp", adjusted, design).reshape(len(adjusted), -1), sizes)
        num = weights.shape[1]
        own, fitted = own.reshape(-1, num, num), fitted.reshape(len(own), num, -1)  # [G, Q, Q] and [G, Q, P]
        crossed = np.einsum("gqp,grp->gqr", fitted, fitted)
        root = np.linalg.cholesky(
            np.linalg.inv((own - crossed).sum(axis=0))
        )  # of the inverse of the expected covariance
        own, crossed = (root.T @ each @ root for each in (own, crossed))
        fitted = root.T @ fitted
        between = np.einsum("gqa,grb->qrab", fitted, fitted, optimize=True)
        diagonal, diagonal_crossed = (np.einsum("gqq->gq", each) for each in (own, crossed))
        one = diagonal.T @ diagonal - diagonal.T @ diagonal_crossed - diagonal_crossed.T @ diagonal
        one += np.square(between).sum(axis=(2, 3))
        two = (own**2 - 2 * own * crossed).sum(axis=0) + np.einsum("qrab,qrba->qr", between, between)
        return adjusted, float(num * (num + 1) / (one + two).sum())

    def _adjusted(self) -> Floats:
        """The weights, each group's multiplied by the inverse root of what the regression leaves of its outcome."""
        weights, sizes, design = self.weights, self.sizes, np.hstack([self.basis, np.linalg.qr(self.x)[0]])
        starts, adjusted = np.cumsum(sizes) - sizes, np.empty_like(weights)
        for size in np.unique(sizes):  # groups of one size at once
            rows = starts[sizes == size][:, None] + np.arange(size)
            left, values, _ = np.linalg.svd(design[rows], full_matrices=False)
            remaining = np.sqrt(np.clip(1 - values**2, 0, 1))[:, :, None]  # 0: the group alone determines a coefficient
            part = weights[rows]
            inside, is_alone = left.transpose(0, 2, 1) @ part, remaining < _ALONE
            if (np.abs(inside) > _ALONE * np.abs(weights).max())[np.broadcast_to(is_alone, inside.shape)].any():
                raise ConfigError("the variable differs in one patient alone; use more patients, or join classes")
            factor = np.where(is_alone, 0, 1 / np.maximum(remaining, _ALONE)) - 1
            adjusted[rows] = part + left @ (factor * inside)
        return adjusted


def _sums(values: Floats, sizes: NDArray[np.intp]) -> Floats:
    """The sums over the rows of each group."""
    return np.add.reduceat(values, np.cumsum(sizes) - sizes, axis=0)


def logistic_associations(
    components: ArrayLike, is_positive: ArrayLike, covariates: Mapping[str, ArrayLike], groups: ArrayLike
) -> Associations:
    """Regress a class on each component and covariates (logistic regression of statsmodels), clustered by group.

    Effects are log odds ratios per unit of the component; t has the degrees of freedom of
    :func:`linear_associations`. Where the component or the covariates separate the classes, all values are NaN.

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
    _, df = _Design.of(y, covariates, groups).bias_reduced()
    basis = _basis({name: _columns(values) for name, values in covariates.items()}, len(y)) * np.sqrt(len(y))
    fits = np.array([_logistic(column, y, basis, member) for column in np.asarray(components, np.float64).T])
    return _with_t(fits[:, 0], fits[:, 1], df, np.full(len(fits), np.nan))


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


def _with_t(effect: Floats, error: Floats, df: float, share: Floats) -> Associations:
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
        array([-0.87,  0.87,  0.  ])
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
    is_constant = lengths.size == 0 or (lengths <= 1e-12 * np.linalg.norm(columns, axis=0)).any()
    if is_constant or np.linalg.svd(left / lengths, compute_uv=False).min() < _COLLINEAR:
        what = "is constant" if is_constant else "is a combination of the covariates before it"
        raise ConfigError(f"{name} {what}, among the cases with all values")
