"""Fitting a direction in z_sem to labels: logistic or ridge regression, regularised by cross-validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_diffae.errors import ConfigError
from monai_diffae.latents.directions import Direction, case_marks
from monai_diffae.latents.groups import numbered_groups
from monai_diffae.latents.probing.probes import (
    LOGISTIC_CS,
    RIDGE_ALPHAS,
    FittedProbe,
    Folds,
    fit_probe,
    grouped_folds,
)
from monai_diffae.latents.probing.scores import score_with_interval
from monai_diffae.latents.statistics import LatentStatistics, checked_codes
from monai_diffae.latents.targets import LabelKind, Target, balanced_choice, read_target

Floats = NDArray[np.float64]

_LEAST_CASES = 4
_LEAST_SLOPE = 1e-6  # used if z_sem does not predict the label: each class then has a probability of one half


def fit_direction(
    z: ArrayLike,
    labels: Sequence[Any],
    *,
    target: str,
    model: str,
    groups: Sequence[Any] | None = None,
    positive: Any = None,
    kind: LabelKind = "auto",
    max_cases: int | None = None,
    seed: int = 0,
    statistics: LatentStatistics | None = None,
) -> Direction:
    """Fit the direction in z_sem along which a label increases.

    Labels with two values are fitted by logistic regression with balanced class weights, numbers with more values by
    ridge regression, both on normalised z_sem (the linear classifier of Diff-AE, Preechakul et al., CVPR 2022, section
    4.2). The regularisation is the one with the smallest (balanced) log loss or squared error in up to 5 folds, which
    keep the cases of a group together. The score is that of nested cross-validation: each case is predicted by a
    direction that was fitted, and whose regularisation was chosen, without its group. With two classes, slope and
    offset are fitted to these out-of-fold distances, so that probabilities are not overfitted to the training cases.

    Args:
        z: z_sem of the training cases ``[N, D]``, not normalised, including cases without a label.
        labels: ``[N]``, numbers, booleans or text; None, NaN and blank text mean that a case has no label.
        target: name of the label.
        model: SHA-256 of the autoencoder's weights.
        groups: ``[N]``, e.g. patients; no group is in both the training and the test part of a fold. None: every case
            is its own group.
        positive: the class that the direction points to; with more than two values, all other values form the negative
            class. None: the larger number, or the text that sorts last.
        kind: ``classes``, ``numbers``, or ``auto``; see :func:`~monai_diffae.latents.targets.read_target`.
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
    labelled = read_target(labels, target, positive, kind)
    used = labelled if max_cases is None else balanced_choice(labelled, max_cases, seed)
    members = np.arange(len(codes)) if groups is None else numbered_groups(list(groups))
    patients = numbered_groups(members[used.rows])
    _check_enough(used, patients, target)
    statistics = statistics or LatentStatistics.of(codes)
    z_norm = statistics.normalise(codes).astype(np.float64)
    fitted = _fitted(z_norm[used.rows], used, patients, seed)
    centred = z_norm - z_norm.mean(axis=0)
    distance = centred @ fitted["weight"]
    std = float(distance.std())
    if not std > 0:
        raise ConfigError(f"target '{target}': no line in z_sem predicts it; choose another target")
    return Direction(
        target=target, kind=used.kind, classes=used.classes, std=std,
        pattern=centred.T @ distance / (distance @ distance), statistics=statistics, model=model,
        num_cases=len(used.rows), num_omitted=len(labels) - len(labelled.rows),
        fitted_marks=case_marks(z_norm[used.rows]), **fitted,
    )  # fmt: skip


def _fitted(z_norm: Floats, target: Target, groups: NDArray[np.intp], seed: int) -> dict[str, Any]:
    num_classes = None if target.classes is None else 2
    y = target.values if num_classes is None else target.values.astype(np.intp)

    def fit(rows: NDArray[np.intp] | slice) -> FittedProbe:
        return fit_probe(
            "linear", z_norm[rows], y[rows], groups[rows], num_classes, seed, standardise=False, balanced=True
        )

    probe = fit(slice(None))
    weight, intercept, length = _plane(probe)
    folds = grouped_folds(y, groups, num_classes, seed)
    if num_classes is None:
        # normalised z_sem is 0 at the training mean, so the distance is 0 there, too
        values = {"intercept": 0.0, "slope": length, "offset": intercept * length}
        predictions, means = _held_out(folds, lambda train, test: np.stack(
            [fit(train).predict(z_norm[test]), np.full(len(test), y[train].mean())], axis=1
        )).T  # fmt: skip
        score, low, high = score_with_interval("r2", y, predictions, groups.tolist(), seed, means, len(folds))
    else:

        def predicted(train: NDArray[np.intp], test: NDArray[np.intp]) -> Floats:
            fitted = fit(train)
            fold_weight, fold_intercept, _ = _plane(fitted)
            ranking = fitted.ranking(z_norm[test], z_norm[train])[:, 1]
            return np.stack([z_norm[test] @ fold_weight + fold_intercept, ranking], axis=1)

        distances, ranking = _held_out(folds, predicted).T
        slope, offset = _calibration(distances, y)
        values = {"intercept": intercept, "slope": slope, "offset": offset}
        score, low, high = score_with_interval("auroc", y, ranking, groups.tolist(), seed, None, len(folds))
    strongest = LOGISTIC_CS[0] if num_classes else RIDGE_ALPHAS[-1]
    regularisation = float(strongest if probe.regularisation is None else probe.regularisation)
    return {"weight": weight, **values, "regularisation": regularisation, "score": score, "low": low, "high": high}


def _held_out(folds: Folds, predict: Callable[[NDArray[np.intp], NDArray[np.intp]], Floats]) -> Floats:
    """The predictions for the test cases of all folds, in the order of the cases."""
    order = np.argsort(np.concatenate([test for _, test in folds]))
    return np.concatenate([predict(train, test) for train, test in folds])[order]


def _plane(probe: FittedProbe) -> tuple[Floats, float, float]:
    """The weight of length 1, the intercept in the same units, and the length that was divided by."""
    scaler, model = probe.model
    weight = np.ravel(model.coef_)
    length = float(np.linalg.norm(weight))
    if not length > 0:
        raise ConfigError("z_sem is the same for all labelled cases; label other cases")
    return weight / length, float(np.ravel(model.intercept_)[0] - weight @ scaler.mean_) / length, length


def _calibration(distance: Floats, y: NDArray[Any]) -> tuple[float, float]:
    """Fit ``logit = slope * distance + offset`` by logistic regression on one number (Platt scaling)."""
    from sklearn.linear_model import LogisticRegression

    unit = float(np.sqrt(np.mean(distance**2))) or 1.0
    model = LogisticRegression(class_weight="balanced").fit(distance[:, None] / unit, y)
    slope = float(model.coef_[0, 0]) / unit
    return (slope, float(model.intercept_[0])) if slope > _LEAST_SLOPE else (_LEAST_SLOPE, 0.0)


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
