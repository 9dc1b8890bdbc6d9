"""Harmonisation of features over scanners: ComBat, fitted to some cases and applied to all."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from monai_diffae.errors import ConfigError, MachineError, counted
from monai_diffae.latents.statistics import Floats, checked_codes, scales

logger = logging.getLogger(__name__)


def least_fitted(empirical_bayes: bool) -> int:
    """The fewest cases of a scanner that its effects can be estimated from; a variance of fewer is hardly known."""
    return 2 if empirical_bayes else 10


def harmonized(
    values: ArrayLike,
    scanners: ArrayLike,
    covariates: ArrayLike,
    fitted: NDArray[np.intp],
    *,
    empirical_bayes: bool = False,
) -> Floats:
    """Remove what scanners ``[N]`` add to features ``[N, D]``, and by what they scale them (Johnson 2007, Fortin 2018).

    What covariates ``[N, C]`` explain in the fitted cases is kept. A feature that never varies in them is unchanged.
    ``empirical_bayes`` shrinks the effects, with combatlearn, instead of removing their estimates exactly; in features
    that are correlated, a linear model can tell the scanner by the rest that this leaves.
    """
    x = checked_codes(values).astype(np.float64)
    names, member = np.unique(np.asarray(scanners, str), return_inverse=True)
    design = _checked_design(names, member, np.asarray(covariates, np.float64), fitted, least_fitted(empirical_bayes))
    std = scales(x[fitted], False)
    varies = std > 0
    if not varies.any():
        raise ConfigError("harmonize: no feature varies in the training cases; embed other cases")
    adjust = _shrunk if empirical_bayes else _exact
    x[:, varies] = adjust(x[:, varies] / std[varies], member, design, fitted) * std[varies]
    return x


def _exact(x: Floats, scanner: NDArray[np.intp], design: Floats, fitted: NDArray[np.intp]) -> Floats:
    """Features with the same mean and variance of the residuals of the fitted cases of every scanner."""
    dummies = np.eye(scanner.max() + 1)[scanner]
    weights = np.linalg.lstsq(np.hstack([dummies, design])[fitted], x[fitted], rcond=None)[0]
    effects, explained = weights[: dummies.shape[1]], design @ weights[dummies.shape[1] :]
    residual = x - explained - effects[scanner]
    pooled = np.sqrt(np.square(residual[fitted]).mean(axis=0))
    own = np.stack([residual[fitted][scanner[fitted] == k].std(axis=0) for k in range(len(effects))])
    scale = pooled / np.where(own > 1e-6 * pooled, own, pooled)  # a feature may never vary on one scanner
    return np.asarray(dummies[fitted].mean(axis=0) @ effects + explained + residual * scale[scanner])


def _shrunk(x: Floats, scanner: NDArray[np.intp], design: Floats, fitted: NDArray[np.intp]) -> Floats:
    """As :func:`_exact`, with effects that are shrunk towards those of all scanners."""
    try:
        from combatlearn import ComBat
    except ImportError as error:
        raise MachineError("combatlearn is not installed; pip install 'monai-diffae[harmonize]'") from error
    # its dummies of classes would depend on the cases that it is given, so it gets numbers
    others = pd.DataFrame(design, columns=[f"c{i}" for i in range(design.shape[1])]) if design.size else None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = ComBat(pd.Series(scanner), continuous_covariates=others, method="fortin")
        even = model.fit(pd.DataFrame(x[fitted], index=fitted)).transform(pd.DataFrame(x)).to_numpy()
    for text in {str(each.message) for each in caught if "converge" in str(each.message)}:
        logger.warning("harmonize: %s", text)
    return np.asarray(even)


def _checked_design(
    names: NDArray[np.str_], member: NDArray[np.intp], covariates: Floats, fitted: NDArray[np.intp], least: int
) -> Floats:
    """The covariates, standardised; they and the scanners must vary independently in the fitted cases."""
    counts = np.bincount(member[fitted], minlength=len(names))
    if len(names) < 2:
        raise ConfigError(f"scanner: all cases are of the scanner '{names[0]}'; there is nothing to harmonize")
    if counts.min() < least:
        name, number = names[counts.argmin()], counted(int(counts.min()), "training case")
        raise ConfigError(f"scanner: '{name}' has {number}, at least {least} are needed; add some, or leave it out")
    std = covariates[fitted].std(axis=0)
    design = (covariates - covariates[fitted].mean(axis=0)) / np.where(std > 0, std, 1)
    both = np.hstack([np.eye(len(names))[member[fitted]], design[fitted]])
    if np.linalg.matrix_rank(both) < both.shape[1]:
        raise ConfigError(
            "protect: the protected columns determine the scanner or each other in the training cases, so what belongs "
            "to which is unknown; protect fewer columns, or add training cases"
        )
    return np.asarray(design)
