"""Fitting a direction in z_sem to labels: logistic or ridge regression, regularised by cross-validation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_diffae.errors import ConfigError
from monai_diffae.latents.directions import Direction
from monai_diffae.latents.groups import numbered_groups
from monai_diffae.latents.probing.probes import LOGISTIC_CS, RIDGE_ALPHAS
from monai_diffae.latents.statistics import LatentStatistics, checked_codes
from monai_diffae.latents.targets import Target, balanced_choice, read_target

Floats = NDArray[np.float64]
Splits: TypeAlias = list[tuple[NDArray[np.intp], NDArray[np.intp]]]

_LEAST_CASES = 4
_MOST_FOLDS = 5
_LEAST_SLOPE = 1e-6  # used if z_sem does not predict the label: each class then has a probability of one half


def fit_direction(
    z: ArrayLike,
    labels: Sequence[Any],
    *,
    target: str,
    model: str,
    groups: Sequence[Any] | None = None,
    positive: Any = None,
    max_cases: int | None = None,
    seed: int = 0,
    statistics: LatentStatistics | None = None,
) -> Direction:
    """Fit the direction in z_sem along which a label increases.

    Labels with two values are fitted by logistic regression with balanced class weights, numbers with more values by
    ridge regression, both on normalised z_sem (the linear classifier of Diff-AE, Preechakul et al., CVPR 2022, section
    4.2). The regularisation is the one whose out-of-fold predictions have the best AUROC or R2, and the strongest if
    several are equally good. The folds of the (up to 5-fold) cross-validation keep the cases of a group together. The
    score is slightly optimistic, because the regularisation was chosen by it: evaluate a direction on other cases. With
    two classes, the slope is fitted to out-of-fold distances, so that probabilities are not overfitted to the training
    cases.

    Args:
        z: z_sem of the training cases ``[N, D]``, not normalised, including cases without a label.
        labels: ``[N]``, numbers, booleans or text; None, NaN and blank text mean that a case has no label.
        target: name of the label.
        model: SHA-256 of the autoencoder's weights.
        groups: ``[N]``, e.g. patients; no group is in both the training and the test part of a fold. None: every case
            is its own group.
        positive: the class that the direction points to; with more than two values, all other values form the negative
            class. None: the larger number, or the text that sorts last.
        max_cases: use at most this many labelled cases, equally many per class as far as possible.
        seed: random seed of the folds and of the choice of ``max_cases``.
        statistics: the statistics that normalise z_sem; None: those of ``z``.

    Raises:
        ConfigError: the numbers of cases differ, the labels give no direction (one value only, text with several
            classes without ``positive``, fewer than 4 cases, or fewer than 2 cases or groups of a class), or z_sem is
            not finite, never varies, or does not fit ``statistics``.

    Example:
        >>> z = np.random.default_rng(0).normal(size=(200, 3))
        >>> direction = fit_direction(z, z[:, 0] > 0, target="large", model="a" * 64)
        >>> direction.classes, direction.score > 0.98, bool(direction.weight[0] > 0.95)
        (('False', 'True'), True, True)
        >>> bool(direction.predict(direction.move(z[:1], 5))[0] > direction.predict(z[:1])[0])
        True
    """
    codes = checked_codes(z, None if statistics is None else statistics.z_channels, num_least=2).astype(np.float64)
    for name, values in {"labels": labels, "groups": groups}.items():
        if values is not None and len(values) != len(codes):
            raise ConfigError(f"{name}: there are {len(values)} for {len(codes)} cases of z_sem; give one per case")
    labelled = read_target(labels, target, positive)
    used = labelled if max_cases is None else balanced_choice(labelled, max_cases, seed)
    names = np.arange(len(codes)) if groups is None else numbered_groups(list(groups))
    group_numbers = numbered_groups(names[used.rows])
    _check_enough(used, group_numbers, target)
    statistics = statistics or LatentStatistics.of(codes)
    z_norm = statistics.normalise(codes).astype(np.float64)
    fit = _fit_binary if used.kind == "binary" else _fit_continuous
    fitted = fit(z_norm[used.rows], used.values, group_numbers, seed)
    centred = z_norm - z_norm.mean(axis=0)
    distance = centred @ fitted["weight"]
    std = float(distance.std())
    if not std > 0:
        raise ConfigError(f"target '{target}': no line in z_sem predicts it; choose another target")
    return Direction(
        target=target, kind=used.kind, classes=used.classes, std=std,
        pattern=centred.T @ distance / (distance @ distance), statistics=statistics, model=model,
        num_cases=len(used.rows), num_omitted=len(labels) - len(labelled.rows), **fitted,
    )  # fmt: skip


def _fit_binary(z_norm: Floats, y: Floats, groups: NDArray[np.intp], seed: int) -> dict[str, Any]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold

    folds = min(_MOST_FOLDS, *(len(np.unique(groups[y == label])) for label in (0, 1)))
    splits: Splits = list(StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(z_norm, y, groups))
    if any(len(np.unique(y[train])) < 2 for train, _ in splits):
        raise ConfigError("groups: cannot be divided into folds with both classes in each; label more patients")

    def fitted(regularisation: float, rows: NDArray[np.intp] | slice) -> Any:
        model = LogisticRegression(C=regularisation, class_weight="balanced", max_iter=2000)
        return model.fit(z_norm[rows], y[rows])

    def distances(model: Any, rows: NDArray[np.intp]) -> Floats:
        # divided by the length, so that the distances of all folds can be ranked together
        length = max(float(np.linalg.norm(model.coef_)), np.finfo(float).tiny)
        return np.asarray(model.decision_function(z_norm[rows]) / length)

    def out_of_fold(regularisation: float) -> Floats:
        return _joined((test, distances(fitted(regularisation, train), test)) for train, test in splits)

    held_out = {float(regularisation): out_of_fold(regularisation) for regularisation in LOGISTIC_CS}
    scores = {regularisation: float(roc_auc_score(y, distance)) for regularisation, distance in held_out.items()}
    regularisation = max(scores, key=scores.__getitem__)  # the first of equal scores, i.e. the strongest
    model = fitted(regularisation, slice(None))
    weight, length = _unit(model.coef_[0])
    return {
        "weight": weight, "intercept": float(model.intercept_[0]) / length, "regularisation": regularisation,
        "slope": _slope(held_out[regularisation], y), "offset": 0.0, "score": scores[regularisation],
    }  # fmt: skip


def _fit_continuous(z_norm: Floats, y: Floats, groups: NDArray[np.intp], seed: int) -> dict[str, Any]:
    from sklearn.linear_model import Ridge
    from sklearn.metrics import r2_score
    from sklearn.model_selection import KFold

    def out_of_fold(alpha: float) -> Floats:
        return _joined(
            (test, Ridge(alpha).fit(z_norm[train], y[train]).predict(z_norm[test])) for train, test in splits
        )

    patients = np.arange(groups.max() + 1)
    folds = KFold(min(_MOST_FOLDS, len(patients)), shuffle=True, random_state=seed).split(patients)
    held_out = [np.isin(groups, test) for _, test in folds]
    splits: Splits = [(np.flatnonzero(~rows), np.flatnonzero(rows)) for rows in held_out]
    scores = {float(alpha): float(r2_score(y, out_of_fold(alpha))) for alpha in RIDGE_ALPHAS[::-1]}
    regularisation = max(scores, key=scores.__getitem__)  # the first of equal scores, i.e. the strongest
    model = Ridge(regularisation).fit(z_norm, y)
    weight, length = _unit(model.coef_)
    # normalised z_sem is 0 at the training mean, so the distance is 0 there, too
    return {
        "weight": weight, "intercept": 0.0, "regularisation": regularisation,
        "slope": length, "offset": float(model.intercept_), "score": scores[regularisation],
    }  # fmt: skip


def _joined(parts: Iterable[tuple[NDArray[np.intp], Floats]]) -> Floats:
    """Concatenate the predictions of the folds, in the order of the cases."""
    rows, values = (np.concatenate(column) for column in zip(*parts, strict=True))
    return np.asarray(values[np.argsort(rows)])


def _unit(weight: Floats) -> tuple[Floats, float]:
    length = float(np.linalg.norm(weight))
    if not length > 0:
        raise ConfigError("z_sem is the same for all labelled cases; label other cases")
    return weight / length, length


def _slope(distance: Floats, y: Floats) -> float:
    """Fit the ``slope`` of ``logit = slope * distance`` by logistic regression on one number (Platt scaling)."""
    from sklearn.linear_model import LogisticRegression

    unit = float(np.sqrt(np.mean(distance**2))) or 1.0
    model = LogisticRegression(fit_intercept=False, class_weight="balanced").fit(distance[:, None] / unit, y)
    return max(float(model.coef_[0, 0]) / unit, _LEAST_SLOPE)


def _check_enough(target: Target, groups: NDArray[np.intp], name: str) -> None:
    """Refuse too few cases or groups for a fit and a cross-validation."""
    num_cases = len(target.rows)
    if target.classes is None:
        if num_cases < _LEAST_CASES or len(np.unique(groups)) < 2:
            raise ConfigError(
                f"target '{name}': {num_cases} labelled cases of {len(np.unique(groups))} patients are too few; "
                f"at least {_LEAST_CASES} cases of 2 patients are needed"
            )
        if np.ptp(target.values) == 0:
            raise ConfigError(f"target '{name}': is the same for all {num_cases} selected cases; increase max_cases")
        return
    counts = {label: int((target.values == label).sum()) for label in (0, 1)}
    patients = {label: len(np.unique(groups[target.values == label])) for label in (0, 1)}
    if num_cases < _LEAST_CASES or min(counts.values()) < 2 or min(patients.values()) < 2:
        listed = " and ".join(
            f"{counts[label]} of '{target.classes[label]}' ({patients[label]} patients)" for label in (0, 1)
        )
        raise ConfigError(f"target '{name}': {listed} are too few; label at least 2 cases of 2 patients of each class")
