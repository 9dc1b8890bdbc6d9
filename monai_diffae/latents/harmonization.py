"""Harmonisation of features over scanners: ComBat, fitted to some cases and applied to all."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from monai_diffae.errors import ConfigError, MachineError, counted
from monai_diffae.latents.statistics import Floats, checked_codes, scales

logger = logging.getLogger(__name__)

LEAST_FITTED = 2  # cases of a scanner, which have a variance


def harmonized(
    values: ArrayLike, scanners: ArrayLike, covariates: ArrayLike, fitted: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Remove what scanners add to features and by what they scale them, with ComBat (Johnson 2007, Fortin 2018).

    What covariates explain in the fitted cases is kept. A feature that never varies in them is returned as it is.

    Args:
        values: ``[N, D]``.
        scanners: ``[N]``.
        covariates: ``[N, C]``, numbers; C may be 0.
        fitted: positions of the cases that the scanners' effects are estimated from.

    Raises:
        ConfigError: there is one scanner, one of them has fewer than two fitted cases, or covariates determine it.
        MachineError: combatlearn is not installed.

    Example:
        >>> values = np.random.default_rng(0).normal(size=(200, 4))
        >>> values[::2] = 3 * values[::2] + 5
        >>> even = harmonized(values, np.arange(200) % 2, np.empty((200, 0)), np.arange(100))[::2]
        >>> bool(abs(even.mean() - values.mean()) < 0.3)
        True
    """
    try:
        from combatlearn import ComBat
    except ImportError as error:
        raise MachineError("combatlearn is not installed; pip install 'monai-diffae[harmonize]'") from error
    x, names = checked_codes(values).astype(np.float64), pd.Series(np.asarray(scanners, str))
    design = _checked_design(names.to_numpy(), np.asarray(covariates, np.float64), fitted)
    std = scales(x[fitted], False)
    varies = std > 0
    if not varies.any():
        raise ConfigError("harmonize: no feature varies in the training cases; embed other cases")
    # combatlearn adds 1e-8 to variances, and its dummies of classes depend on the cases that it is given
    frame = pd.DataFrame(x[:, varies] / std[varies])
    others: Any = pd.DataFrame(design, columns=[f"c{i}" for i in range(design.shape[1])]) if design.size else None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = ComBat(names, continuous_covariates=others, method="fortin").fit(frame.iloc[fitted])
        x[:, varies] = model.transform(frame).to_numpy() * std[varies]
    for text in {str(each.message) for each in caught if "converge" in str(each.message)}:
        logger.warning("harmonize: %s", text)
    return x


def _checked_design(scanners: NDArray[Any], covariates: Floats, fitted: NDArray[np.intp]) -> Floats:
    """The covariates, standardised; they and the scanners must vary independently in the fitted cases."""
    names, member = np.unique(scanners, return_inverse=True)
    counts = np.bincount(member[fitted], minlength=len(names))
    if len(names) < 2:
        raise ConfigError(f"scanner: all cases are of the scanner '{names[0]}'; there is nothing to harmonize")
    if counts.min() < LEAST_FITTED:
        name = names[counts.argmin()]
        raise ConfigError(
            f"scanner: '{name}' has {counted(int(counts.min()), 'training case')}, at least {LEAST_FITTED} are needed"
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
