"""Fitting a direction of z_sem to labels: logistic or ridge regression, its strength chosen across patients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_diffae.errors import ConfigError
from monai_diffae.latents.directions import Direction
from monai_diffae.latents.probing.probes import LOGISTIC_CS, RIDGE_ALPHAS
from monai_diffae.latents.statistics import LatentStatistics, checked_codes
from monai_diffae.latents.targets import Target, balanced_choice, read_target

Floats = NDArray[np.float64]
Splits: TypeAlias = list[tuple[NDArray[np.intp], NDArray[np.intp]]]

_LEAST_CASES = 4
_MOST_FOLDS = 5
_LEAST_SLOPE = 1e-6  # of a label that z_sem does not tell: each class has a probability of one half


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
    """The direction in which z_sem says more of a label.

    A label of two values is told by a logistic regression with balanced class weights, a number of more values by a
    ridge regression, both of normalised z_sem (the linear classifier of Diff-AE, Preechakul et al., CVPR 2022, section
    4.2). The strength of the regularisation is the one with the best AUROC or R2 of all cases' out-of-fold
    predictions, the folds of up to 5-fold cross-validation dividing the groups; the strongest where several are alike.
    That score is a little too good, since the strength was chosen by it: judge a direction on other cases. The slope
    of two classes is fitted to the out-of-fold distances, so that probabilities are not those of cases learnt by heart.

    Args:
        z: the training cases' z_sem ``[N, D]``, not normalised, those without a label too.
        labels: ``[N]``, numbers, booleans or text; None, NaN and blank text stand for no label.
        target: the label's name.
        model: the SHA-256 of the autoencoder's weights.
        groups: ``[N]``, such as patients: none is in the training and the test part of a fold. None: each case its own.
        positive: the class that the direction points to; the larger number or the text that sorts last when None. With
            more than two values it is set against all others.
        max_cases: only so many labelled cases, of both classes alike as far as there are as many.
        seed: of the folds, and of the choice of ``max_cases``.
        statistics: to normalise with; those of ``z`` when None.

    Raises:
        ConfigError: numbers of cases that differ, a label that gives no direction (one value only, text of several
            classes without ``positive``, fewer than 4 cases or 2 cases or groups of a class), or z_sem that is not
            finite, never varies, or does not fit ``statistics``.

    Example:
        >>> z = np.random.default_rng(0).normal(size=(200, 3))
        >>> direction = fit_direction(z, z[:, 0] > 0, target="large", model="a" * 64)
        >>> direction.classes, direction.score > 0.98, bool(direction.weight[0] > 0.95)
        (('False', 'True'), True, True)
        >>> bool(direction.predict(direction.move(z[:1], 5))[0] > direction.predict(z[:1])[0])
        True
    """
    import pandas as pd

    codes = checked_codes(z, None if statistics is None else statistics.z_channels, num_least=2).astype(np.float64)
    for name, values in {"labels": labels, "groups": groups}.items():
        if values is not None and len(values) != len(codes):
            raise ConfigError(f"{name}: there are {len(values)} for {len(codes)} cases of z_sem; one each is needed")
    known = read_target(labels, target, positive)
    chosen = known if max_cases is None else balanced_choice(known, max_cases, seed)
    # numbered as they appear, so that names do not decide the folds
    names = np.array([str(group) for group in (range(len(codes)) if groups is None else groups)], object)
    member, _ = pd.factorize(names[chosen.rows])
    _check_enough(chosen, member, target)
    statistics = statistics or LatentStatistics.of(codes)
    z_norm = statistics.normalise(codes).astype(np.float64)
    fit = _fit_binary if chosen.kind == "binary" else _fit_continuous
    fitted = fit(z_norm[chosen.rows], chosen.values, member, seed)
    centred = z_norm - z_norm.mean(axis=0)
    distance = centred @ fitted["weight"]
    spread = float(distance.std())
    if not spread > 0:
        raise ConfigError(f"target '{target}': no line in z_sem tells it; choose another target")
    return Direction(
        target=target, kind=chosen.kind, classes=chosen.classes, spread=spread,
        pattern=centred.T @ distance / (distance @ distance), statistics=statistics, model=model,
        num_cases=len(chosen.rows), num_left_out=len(labels) - len(known.rows), **fitted,
    )  # fmt: skip


def _fit_binary(z_norm: Floats, y: Floats, member: NDArray[np.intp], seed: int) -> dict[str, Any]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold

    folds = min(_MOST_FOLDS, *(len(np.unique(member[y == label])) for label in (0, 1)))
    splits: Splits = list(StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(z_norm, y, member))
    if any(len(np.unique(y[train])) < 2 for train, _ in splits):
        raise ConfigError("groups: they cannot be divided with both classes in every part; label more patients")

    def fitted(strength: float, rows: NDArray[np.intp] | slice) -> Any:
        model = LogisticRegression(C=strength, class_weight="balanced", max_iter=2000)
        return model.fit(z_norm[rows], y[rows])

    def distances(model: Any, rows: NDArray[np.intp]) -> Floats:
        # of any strength in the same unit, so that folds can be ranked together
        length = max(float(np.linalg.norm(model.coef_)), np.finfo(float).tiny)
        return np.asarray(model.decision_function(z_norm[rows]) / length)

    def out_of_fold(strength: float) -> Floats:
        return _joined((test, distances(fitted(strength, train), test)) for train, test in splits)

    held_out = {float(strength): out_of_fold(strength) for strength in LOGISTIC_CS}
    scores = {strength: float(roc_auc_score(y, distance)) for strength, distance in held_out.items()}
    strength = max(scores, key=lambda strength: scores[strength])  # the first of equals, and so the strongest
    model = fitted(strength, slice(None))
    weight, length = _unit(model.coef_[0])
    return {
        "weight": weight, "intercept": float(model.intercept_[0]) / length, "strength": strength,
        "slope": _slope(held_out[strength], y), "offset": 0.0, "score": scores[strength],
    }  # fmt: skip


def _fit_continuous(z_norm: Floats, y: Floats, member: NDArray[np.intp], seed: int) -> dict[str, Any]:
    from sklearn.linear_model import Ridge
    from sklearn.metrics import r2_score
    from sklearn.model_selection import KFold

    def out_of_fold(strength: float) -> Floats:
        return _joined(
            (test, Ridge(strength).fit(z_norm[train], y[train]).predict(z_norm[test])) for train, test in splits
        )

    patients = np.arange(member.max() + 1)
    folds = KFold(min(_MOST_FOLDS, len(patients)), shuffle=True, random_state=seed).split(patients)
    held_out = [np.isin(member, test) for _, test in folds]
    splits: Splits = [(np.flatnonzero(~rows), np.flatnonzero(rows)) for rows in held_out]
    scores = {float(strength): float(r2_score(y, out_of_fold(strength))) for strength in RIDGE_ALPHAS[::-1]}
    strength = max(scores, key=lambda strength: scores[strength])  # the first of equals, and so the strongest
    model = Ridge(strength).fit(z_norm, y)
    weight, length = _unit(model.coef_)
    # normalised z_sem is 0 at the training mean, and so is the distance
    return {
        "weight": weight, "intercept": 0.0, "strength": strength,
        "slope": length, "offset": float(model.intercept_), "score": scores[strength],
    }  # fmt: skip


def _joined(parts: Iterable[tuple[NDArray[np.intp], Floats]]) -> Floats:
    """Predictions of the folds, in the order of the cases."""
    rows, values = (np.concatenate(column) for column in zip(*parts, strict=True))
    return np.asarray(values[np.argsort(rows)])


def _unit(weight: Floats) -> tuple[Floats, float]:
    length = float(np.linalg.norm(weight))
    if not length > 0:
        raise ConfigError("z_sem is the same for all labelled cases; label others")
    return weight / length, length


def _slope(distance: Floats, y: Floats) -> float:
    """The ``slope`` of ``logit = slope * distance``: a logistic regression of one number (Platt's scaling)."""
    from sklearn.linear_model import LogisticRegression

    unit = float(np.sqrt(np.mean(distance**2))) or 1.0
    model = LogisticRegression(fit_intercept=False, class_weight="balanced").fit(distance[:, None] / unit, y)
    return max(float(model.coef_[0, 0]) / unit, _LEAST_SLOPE)


def _check_enough(target: Target, member: NDArray[np.intp], name: str) -> None:
    """Enough cases and groups for a fit and a cross-validation."""
    num_cases = len(target.rows)
    if target.classes is None:
        if num_cases < _LEAST_CASES or len(np.unique(member)) < 2:
            raise ConfigError(
                f"target '{name}': {num_cases} labelled cases of {len(np.unique(member))} patients are too few; "
                f"{_LEAST_CASES} cases of 2 are the least"
            )
        if np.ptp(target.values) == 0:
            raise ConfigError(f"target '{name}': is the same for all {num_cases} chosen cases; allow more cases")
        return
    counts = {label: int((target.values == label).sum()) for label in (0, 1)}
    patients = {label: len(np.unique(member[target.values == label])) for label in (0, 1)}
    if num_cases < _LEAST_CASES or min(counts.values()) < 2 or min(patients.values()) < 2:
        listed = " and ".join(
            f"{counts[label]} of '{target.classes[label]}' ({patients[label]} patients)" for label in (0, 1)
        )
        raise ConfigError(f"target '{name}': {listed} are too few; label 2 cases of 2 patients of each class at least")
