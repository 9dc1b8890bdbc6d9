"""The uncertainty of a probe that is fitted to the labels so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_diffae.errors import ConfigError
from monai_diffae.latents.probing.probes import fit_probe
from monai_diffae.latents.statistics import checked_codes
from monai_diffae.latents.targets import LabelKind, are_classes, class_name, missing

Floats = NDArray[np.float64]


def uncertainty(z: ArrayLike, labelled: ArrayLike, labels: Sequence[Any], *, kind: LabelKind = "auto") -> Floats:
    """How uncertain a probe is about each case, after it was fitted to the labelled cases.

    For classes, the probe is a logistic regression, and the uncertainty is the entropy of its probabilities, divided
    by that of equal probabilities (0 to 1). For numbers, it is scikit-learn's ``BayesianRidge``, and the uncertainty is
    the standard deviation of its prediction, in the unit of the labels. If nothing can be fitted, because fewer than
    two cases are labelled or all labels are the same, all cases are equally uncertain: 1.

    Args:
        z: ``[N, D]``, normalised, all cases.
        labelled: ``[L]``, the rows of ``z`` with a label.
        labels: ``[L]``, their labels: numbers, booleans or text.
        kind: whether labels are ``classes`` or ``numbers``; ``auto``: see
            :func:`~monai_diffae.latents.targets.are_classes`.

    Returns:
        ``[N]``, above or equal to 0.

    Raises:
        ConfigError: the shapes do not match, a label is missing or not finite, or values of ``z`` are not finite.

    Example:
        >>> z = np.linspace(-1, 1, 5)[:, None]
        >>> entropy = uncertainty(z, [0, 1, 3, 4], ["ill", "ill", "well", "well"])
        >>> int(entropy.argmax()), uncertainty(z, [0], ["ill"])
        (2, array([1., 1., 1., 1., 1.]))
    """
    codes, rows = checked_codes(z, num_least=1).astype(np.float64), np.asarray(labelled, np.intp)
    if rows.shape != (len(labels),):
        raise ConfigError(f"labels: {len(labels)} labels for {rows.size} labelled cases; give one for each")
    if missing(labels).any():
        raise ConfigError("labels: some are missing or infinite; give only cases with a label")
    if are_classes(labels, kind):
        names, target = np.unique([class_name(label) for label in labels], return_inverse=True)
        if len(names) < 2:
            return np.ones(len(codes))
        order = np.argsort(rows)  # the folds depend on the order of the cases
        rows, target = rows[order], target[order]
        probe = fit_probe("linear", codes[rows], target, rows, len(names), standardise=False)
        return _entropy(probe.predict(codes)) / np.log(len(names))
    return _predictive_std(codes, rows, _numbers(labels))


def _numbers(labels: Sequence[Any]) -> Floats:
    try:
        values = np.asarray(labels, np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError("labels: are not all numbers; give numbers, or classes for all cases") from error
    if not np.isfinite(values).all():
        raise ConfigError("labels: some are missing or infinite; give only cases with a label")
    return values


def _entropy(probabilities: Floats) -> Floats:
    p = np.clip(probabilities, np.finfo(np.float64).tiny, 1)
    entropy: Floats = -(p * np.log(p)).sum(axis=1)
    return entropy


def _predictive_std(z: Floats, rows: NDArray[np.intp], values: Floats) -> Floats:
    from sklearn.linear_model import BayesianRidge

    if len(values) < 2 or not np.ptp(values):
        return np.ones(len(z))
    scale = values.std()
    _, std = BayesianRidge().fit(z[rows], values / scale).predict(z, return_std=True)
    return np.asarray(std * scale, np.float64)
