"""Harmonisation of features over scanners: ComBat, fitted to some cases and applied to all."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_diffae.errors import ConfigError, counted
from monai_diffae.latents.neighbors import numbered_groups
from monai_diffae.latents.statistics import Floats, float64_codes, scales

_CASES_PER_COMPONENT, _FLOOR = 8, 0.01
CONFOUNDED = 0.3
"""The :func:`association` with the scanner from which what a column explains may be the scanner's."""
LEAST_FITTED = 10
"""The fewest cases of a scanner that its effects can be estimated from; a variance of fewer is hardly known."""


def harmonized(
    values: ArrayLike,
    scanners: ArrayLike,
    covariates: ArrayLike,
    fitted: NDArray[np.intp],
    *,
    common_scale: bool = False,
) -> Floats:
    """Remove what scanners ``[N]`` add to features ``[N, D]``, and how they scale and mix them (ComBat, CovBat).

    What covariates ``[N, C]`` explain in the fitted cases is kept. A feature that never varies in them is unchanged.
    With ``common_scale``, the mixing is undone in the components of the features as they are, otherwise of standardised
    ones.
    """
    x = float64_codes(values)
    names, member = np.unique(np.asarray(scanners, str), return_inverse=True)
    design = _checked_design(names, member, np.asarray(covariates, np.float64), fitted)
    varies = scales(x[fitted], False) > 0
    if not varies.any():
        raise ConfigError("harmonize: no feature varies in the training cases; embed other cases")
    std = scales(x[fitted][:, varies], common_scale)
    x[:, varies] = _even(x[:, varies] / std, member, design, fitted) * std
    return x


def association(covariates: ArrayLike, scanners: ArrayLike, patients: ArrayLike) -> float:
    """How closely covariates ``[N, C]`` and scanners are associated, from 0 to 1; NaN if the covariates do not vary.

    Each value of a patient and scanner counts once. It is Cramer's V for the indicators of classes and the correlation
    ratio for a number, minus what is expected by chance with few patients and many classes
    (Bergsma 2013, doi:10.1016/j.jkss.2012.10.002).
    """
    if not np.diff(covariates, axis=0).any():
        return np.nan
    patient = numbered_groups(patients)
    both = np.unique(np.column_stack([patient, np.unique(scanners, return_inverse=True)[1], covariates]), axis=0)
    x, y = (each - each.mean(axis=0) for each in (both[:, 1:2] == np.unique(both[:, 1]), both[:, 2:]))
    df, other, rest = np.linalg.matrix_rank(x), np.linalg.matrix_rank(y), patient.max()
    shared = np.trace(np.linalg.pinv(x) @ y @ np.linalg.pinv(y) @ x) - df * other / rest
    return float(np.sqrt(np.clip(shared / max(min(df, other), 1), 0, 1)))


def _even(x: Floats, scanner: NDArray[np.intp], design: Floats, fitted: NDArray[np.intp]) -> Floats:
    """Features whose residuals have the same mean, variance and leading covariances in the fitted cases."""
    dummies = np.eye(scanner.max() + 1)[scanner]
    weights = np.linalg.lstsq(np.hstack([dummies, design])[fitted], x[fitted], rcond=None)[0]
    effects, explained = weights[: dummies.shape[1]], design @ weights[dummies.shape[1] :]
    residual = x - explained - effects[scanner]
    pooled = np.sqrt(np.square(residual[fitted]).mean(axis=0))
    residual = _with_equal_covariances(residual, scanner, fitted)
    own = np.stack([residual[fitted][scanner[fitted] == k].std(axis=0) for k in range(len(effects))])
    scale = pooled / np.where(own > 1e-6 * pooled, own, pooled)  # a feature may never vary on one scanner
    return np.asarray(dummies[fitted].mean(axis=0) @ effects + explained + residual * scale[scanner])


def _with_equal_covariances(residual: Floats, scanner: NDArray[np.intp], fitted: NDArray[np.intp]) -> Floats:
    """Give the leading components the same covariance on every scanner, by the smallest change (after Chen 2022).

    With one component for every eight fitted cases of the smallest scanner, the covariances are known well enough.
    """
    members = [fitted[scanner[fitted] == k] for k in range(scanner.max() + 1)]
    _, values, axes = np.linalg.svd(residual[fitted], full_matrices=False)
    num = min(min(map(len, members)) // _CASES_PER_COMPONENT, int((values > 1e-6 * values[0]).sum()))
    parts = residual @ axes[:num].T
    std = values[:num] / np.sqrt(len(fitted))
    even = parts.copy()
    for k, rows in enumerate(members):
        # the mean product of these rows is the covariance; a component may never vary on one scanner
        spread = np.vstack([np.sqrt((1 - _FLOOR) / len(rows)) * parts[rows], np.sqrt(_FLOOR) * np.diag(std)])
        # the map between two normal distributions that moves the least; from rows, small components keep their digits
        _, own, turn = np.linalg.svd(spread * std, full_matrices=False)
        even[scanner == k] = parts[scanner == k] @ (std[:, None] * (turn.T / own) @ turn * std)
    return residual + (even - parts) @ axes[:num]


def _checked_design(
    names: NDArray[np.str_], member: NDArray[np.intp], covariates: Floats, fitted: NDArray[np.intp]
) -> Floats:
    """The covariates, standardised; they and the scanners must vary independently in the fitted cases."""
    counts = np.bincount(member[fitted], minlength=len(names))
    if len(names) < 2:
        raise ConfigError(f"scanner: all cases are of the scanner '{names[0]}'; there is nothing to harmonize")
    if counts.min() < LEAST_FITTED:
        number = counted(int(counts.min()), "training case")
        raise ConfigError(
            f"scanner: '{names[counts.argmin()]}' has {number}, at least {LEAST_FITTED} are needed; add some, or leave "
            "it out"
        )
    std = covariates[fitted].std(axis=0)
    design = (covariates - covariates[fitted].mean(axis=0)) / np.where(std > 0, std, 1)
    both = np.hstack([np.eye(len(names))[member[fitted]], design[fitted]])
    if np.linalg.matrix_rank(both) < both.shape[1]:
        raise ConfigError(
            "protect: the protected columns determine the scanner or each other in the training cases, so what belongs "
            "to which is unknown; protect fewer columns, or add training cases"
        )
    return np.asarray(design)
