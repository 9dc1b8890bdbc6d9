"""Regressions of many components on a variable and covariates, with errors clustered by patient.

Errors are CR2, and t has Satterthwaite's degrees of freedom (Bell and McCaffrey 2002), so that p-values also hold for
few patients, rare classes and skewed numbers. A variable with several columns, such as the indicators of classes, has
one F test (AHZ of Tipton and Pustejovsky 2015, doi:10.3102/1076998615606099), or permutations where its p-values would
be too small.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse, stats

from monai_diffae.errors import ConfigError, counted
from monai_diffae.latents.neighbors import numbered_groups
from monai_diffae.latents.statistics import Floats

_COLLINEAR = 1e-5  # of a column's length: what is left of it beside the others
_ALONE = 1e-6  # share of a group's outcome that its own coefficient leaves
_SEPARATED = 15.0  # log odds per standard deviation; no association of a scan with a class is that strong
_CONSTANT = 1e-20  # variance of a component that never varies
_MEDIAN_CHI2 = 0.4549364  # of one degree of freedom
_LEAST_PER_PAIR = 10  # patients per pair of classes, for the F test


@dataclass(frozen=True, eq=False)
class Associations:
    """The associations of K components with one variable."""

    effect: Floats  # of the variable, or of the component in a logistic regression; NaN for several columns
    low: Floats  # of the 95 % interval of the effect
    high: Floats
    p: Floats  # NaN if there is no estimate
    share: Floats  # of the variance beside the covariates that the variable explains; NaN in a logistic regression


def linear_associations(
    components: ArrayLike,
    variable: ArrayLike,
    covariates: Mapping[str, ArrayLike],
    groups: ArrayLike,
    num_permutations: int = 10_000,
) -> Associations:
    """Regress components ``[N, K]`` on a variable ``[N]`` or ``[N, Q]`` and covariates, clustered by groups ``[N]``.

    With several columns and fewer than 10 groups per pair of classes, p is from permutations of the variable
    among the groups. This is exact without covariates, if the variable is the same for all cases of a group.
    """
    design = _Design.of(variable, covariates, groups)
    num_columns = design.x.shape[1]
    y = _without(np.asarray(components, np.float64)[design.order], design.basis)
    slopes = design.weights.T @ y
    residuals = y - design.x @ slopes
    total = np.square(y).sum(axis=0)
    share = 1 - np.square(residuals).sum(axis=0) / np.where(total > _CONSTANT * len(y), total, np.nan)
    weights, df = design.bias_reduced()
    scores = np.stack([design.sums(each[:, None] * residuals) for each in weights.T])  # [Q, G, K]
    covariance = np.einsum("qgk,rgk->kqr", scores, scores, optimize=True)
    if num_columns == 1:
        return _with_t(slopes[0], np.where(np.isnan(share), np.nan, covariance[:, 0, 0]) ** 0.5, df, share)
    nothing, p, rest = np.full(len(share), np.nan), np.full(len(share), np.nan), df - num_columns + 1
    known = (np.linalg.cond(covariance) < 1 / np.finfo(float).eps) & ~np.isnan(share) & (rest > 0)
    solved = np.linalg.solve(covariance[known], slopes.T[known][:, :, None])[:, :, 0]
    p[known] = stats.f.sf((slopes.T[known] * solved).sum(axis=1) / num_columns * (rest / df), num_columns, rest)
    if len(design.sizes) < _LEAST_PER_PAIR * num_columns * (num_columns + 1) / 2:
        permuted = _permuted_p(design, np.asarray(variable, np.float64)[design.order], y, num_permutations)
        p = np.where(np.isnan(share), np.nan, permuted)
    return Associations(nothing, nothing, nothing, p, share)


def _permuted_p(design: "_Design", columns: Floats, y: Floats, num: int) -> Floats:
    starts, generator = np.cumsum(design.sizes) - design.sizes, np.random.default_rng(0)
    member, explained = np.repeat(np.arange(len(starts)), design.sizes), []
    other, place = member, np.arange(len(y)) - starts[member]
    classes = sparse.csr_array(columns)
    for _ in range(num):
        x = classes[starts[other] + place % design.sizes[other]]
        shared, known = x.T @ y, x.T @ design.basis  # y has nothing of the basis
        inverse = np.linalg.pinv((x.T @ x).toarray() - known @ known.T, hermitian=True)  # they may follow from it
        explained.append((shared * (inverse @ shared)).sum(axis=0))
        other = generator.permutation(len(starts))[member]  # the patient whose values each gets next
    return np.asarray((np.array(explained) >= explained[0] * (1 - 1e-9)).mean(axis=0))


def logistic_associations(
    components: ArrayLike, is_positive: ArrayLike, covariates: Mapping[str, ArrayLike], groups: ArrayLike
) -> Associations:
    """Regress a class on each component and covariates; log odds ratios, all NaN where the classes are separated."""
    design = _Design.of(is_positive, covariates, groups)
    y, basis = np.asarray(is_positive, np.float64)[design.order], design.basis * np.sqrt(len(design.basis))
    member = np.repeat(np.arange(len(design.sizes)), design.sizes)
    columns = np.asarray(components, np.float64)[design.order].T
    effect, error = np.array([_logistic(column, y, basis, member) for column in columns]).T
    return _with_t(effect, error, design.bias_reduced()[1], np.full(len(effect), np.nan))


def _logistic(component: Floats, y: Floats, basis: Floats, member: NDArray[np.intp]) -> tuple[float, float]:
    """The coefficient of a component and its standard error; NaN if the classes are separated."""
    from statsmodels.discrete.discrete_model import Logit

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # separation is found below
        try:
            model = Logit(y, np.column_stack([component, basis]))
            fit = model.fit(disp=0, maxiter=50, cov_type="cluster", cov_kwds={"groups": member})
        except np.linalg.LinAlgError:
            return np.nan, np.nan
    log_odds = np.abs(fit.params * [component.std(), *[1] * basis.shape[1]])
    is_known = fit.mle_retvals["converged"] and log_odds.max() <= _SEPARATED and np.isfinite(fit.bse[0])
    return (float(fit.params[0]), float(fit.bse[0])) if is_known else (np.nan, np.nan)


def _with_t(effect: Floats, error: Floats, df: float, share: Floats) -> Associations:
    known = np.where(error > 0, error, np.nan)  # 0: the component is constant
    half = stats.t.ppf(0.975, df) * known
    return Associations(effect, effect - half, effect + half, 2 * stats.t.sf(np.abs(effect) / known, df), share)


def q_values(p: ArrayLike) -> Floats:
    """The q-values of p-values (Benjamini and Hochberg): the false discovery rate up to each. NaN stays NaN."""
    values = np.array(p, np.float64)
    is_known = ~np.isnan(values)
    if is_known.any():
        values[is_known] = stats.false_discovery_control(values[is_known])
    return values


def inflation(p: ArrayLike) -> float:
    """The inflation of test statistics: the median of chi-squared over that of true null hypotheses, which is 1."""
    return float(np.nanmedian(stats.chi2.isf(np.asarray(p, np.float64), 1)) / _MEDIAN_CHI2)


def rank_normal(values: ArrayLike) -> Floats:
    """Replace the values ``[N]`` or ``[N, K]`` of each column by normal quantiles of their ranks (Blom)."""
    ranks = stats.rankdata(values, axis=0)
    return np.asarray(stats.norm.ppf((ranks - 0.375) / (len(ranks) + 0.25)), np.float64)


@dataclass(frozen=True, eq=False)
class _Design:
    """A regression without its outcomes, with the rows in the order of their groups."""

    order: NDArray[np.intp]
    sizes: NDArray[np.intp]  # [G], rows of each group
    basis: Floats  # [N, 1 + C], orthonormal, of the constant and the covariates
    x: Floats  # [N, Q], the variable without what these explain
    weights: Floats  # [N, Q]; a coefficient is the sum of its column times the outcome

    @classmethod
    def of(cls, variable: ArrayLike, covariates: Mapping[str, ArrayLike], groups: ArrayLike) -> "_Design":
        """The design of a variable, or an error that says why there is none."""
        member = numbered_groups(groups)
        order = np.argsort(member, kind="stable")
        basis = np.full((len(order), 1), len(order) ** -0.5)
        for name, values in covariates.items():
            left = _independent(values, order, basis, f"covariate '{name}'")
            basis = np.hstack([basis, np.linalg.qr(left)[0]])
        x = _independent(variable, order, basis, "the variable")
        num_groups, num_coefficients = int(member.max()) + 1, basis.shape[1] + x.shape[1]
        if num_groups <= num_coefficients:
            raise ConfigError(f"too few patients, {num_groups}, for {counted(num_coefficients, 'coefficient')}")
        return cls(order, np.bincount(member), basis, x, np.asarray(np.linalg.pinv(x).T, np.float64))

    def bias_reduced(self) -> tuple[Floats, float]:
        """The weights of CR2, and Satterthwaite's degrees of freedom."""
        num, design = self.weights.shape[1], np.hstack([self.basis, np.linalg.qr(self.x)[0]])
        adjusted = self._adjusted(design)
        own, fitted = (
            self.sums(np.einsum("nq,nr->nqr", adjusted, each).reshape(len(adjusted), -1)).reshape(
                len(self.sizes), num, -1
            )
            for each in (adjusted, design)
        )  # [G, Q, Q] and [G, Q, P]
        crossed = np.einsum("gqp,grp->gqr", fitted, fitted)
        # of the inverse of the expected covariance
        root = np.linalg.cholesky(np.linalg.inv((own - crossed).sum(axis=0)))
        own, crossed, fitted = root.T @ own @ root, root.T @ crossed @ root, root.T @ fitted
        between = np.einsum("gqa,grb->qrab", fitted, fitted, optimize=True)
        diagonal, diagonal_crossed = (np.einsum("gqq->gq", each) for each in (own, crossed))
        one = diagonal.T @ diagonal - diagonal.T @ diagonal_crossed - diagonal_crossed.T @ diagonal
        one += np.square(between).sum(axis=(2, 3))
        two = (own**2 - 2 * own * crossed).sum(axis=0) + np.einsum("qrab,qrba->qr", between, between)
        return adjusted, float(num * (num + 1) / (one + two).sum())

    def _adjusted(self, design: Floats) -> Floats:
        """The weights, each group's multiplied by the inverse root of what the regression leaves of its outcome."""
        starts, adjusted = np.cumsum(self.sizes) - self.sizes, np.empty_like(self.weights)
        for size in np.unique(self.sizes):  # groups of one size at once
            rows = starts[self.sizes == size][:, None] + np.arange(size)
            left, values, _ = np.linalg.svd(design[rows], full_matrices=False)
            remaining = np.sqrt(np.clip(1 - values**2, 0, 1))[:, :, None]  # 0: the group alone determines a coefficient
            part = self.weights[rows]
            inside, is_alone = left.transpose(0, 2, 1) @ part, remaining < _ALONE
            if ((np.abs(inside) > _ALONE * np.abs(self.weights).max()) & is_alone).any():
                raise ConfigError("the variable differs in one patient alone; use more patients, or join classes")
            factor = np.where(is_alone, 0, 1 / np.maximum(remaining, _ALONE)) - 1
            adjusted[rows] = part + left @ (factor * inside)
        return adjusted

    def sums(self, values: Floats) -> Floats:
        """The sums over the rows of each group."""
        return np.add.reduceat(values, np.cumsum(self.sizes) - self.sizes, axis=0)


def _without(columns: Floats, basis: Floats) -> Floats:
    """What is left of columns beside a basis; twice, for the sake of rounding."""
    left = columns - basis @ (basis.T @ columns)
    return np.asarray(left - basis @ (basis.T @ left), np.float64)


def _independent(values: ArrayLike, order: NDArray[np.intp], basis: Floats, name: str) -> Floats:
    """What is left of values ``[N]`` or ``[N, C]`` beside a basis, which must be something."""
    columns = np.asarray(values, np.float64)[order]
    columns = columns[:, None] if columns.ndim == 1 else columns
    left = _without(columns, basis)
    lengths = np.linalg.norm(columns - columns.mean(axis=0), axis=0)
    is_constant = lengths.size == 0 or (lengths <= 1e-12 * np.linalg.norm(columns, axis=0)).any()
    if is_constant or np.linalg.svd(left / lengths, compute_uv=False).min() < _COLLINEAR:
        what = "is constant" if is_constant else "is a combination of the covariates before it"
        raise ConfigError(f"{name} {what}, among the cases with all values")
    return left
