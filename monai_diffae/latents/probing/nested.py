"""Predictions of cases whose patients a probe was not fitted to: from nested cross-validation, or one split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_diffae.errors import ConfigError
from monai_diffae.latents.probing.probes import Floats, Folds, Probe, fit_probe, grouped_folds
from monai_diffae.latents.probing.scores import ClassScores, NumberScores
from monai_diffae.latents.probing.targets import ProbeTarget

_LEAST_TRAINING, _LEAST_JUDGED = 4, 2
_LEAST_PATIENTS = 3  # of a class, in cross-validation: two train, of whom one chooses the strength
_LEAST_PATIENTS_A_SIDE = 2  # of a split: of one, neither a strength nor an interval can be told
_LEAST_LABELLED = 2  # patients of each class, in a draw of a few labels


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Predictions of the judged cases, each by a probe that was not fitted to its patient.

    Attributes:
        target: of the judged cases alone, with the classes of all.
        fold: ``[K]``, which probe.
        predicted: ``[K, classes]`` probabilities, or ``[K]`` numbers.
        classified: ``[K]``, the class that each is taken for: the most probable if all were equally frequent among the
            training cases; None of numbers.
        strengths: of each fold's probe.
    """

    target: ProbeTarget
    fold: NDArray[np.intp]
    predicted: Floats
    classified: NDArray[np.intp] | None
    strengths: tuple[float | None, ...]

    def scores(self) -> ClassScores | NumberScores:
        """Its scores, of any weights of the cases."""
        if self.target.classes is None:
            return NumberScores(self.target.values, self.predicted)
        return ClassScores(self.target.values, self.predicted, self.classified)


def cross_validation(target: ProbeTarget, groups: NDArray[Any], seed: int = 0) -> tuple[ProbeTarget, Folds]:
    """The outer folds of nested cross-validation, and the target without the classes that are too small for it.

    Args:
        target: K cases.
        groups: ``[K]``, their patients.
        seed: of the folds.

    Raises:
        ConfigError: fewer than two classes with 3 patients, or too few cases or patients.
    """
    target, groups = _large_enough(target, groups, {"": (np.arange(len(target.rows)), _LEAST_PATIENTS)})
    patients = len(np.unique(groups))
    if len(target.rows) < _LEAST_TRAINING + _LEAST_JUDGED or patients < _LEAST_PATIENTS:
        raise ConfigError(
            f"target '{target.name}': {len(target.rows)} cases of {patients} patients are too few; "
            f"{_LEAST_TRAINING + _LEAST_JUDGED} of {_LEAST_PATIENTS} are the least"
        )
    return target, grouped_folds(target.values, groups, _num_classes(target), seed)


def train_and_test(
    target: ProbeTarget, groups: NDArray[Any], is_train: NDArray[np.bool_], is_test: NDArray[np.bool_]
) -> tuple[ProbeTarget, Folds]:
    """A table's own split as the only fold, and the target without the classes that are too small for it.

    Args:
        target: K cases.
        groups: ``[K]``, their patients.
        is_train: ``[K]``, which the probe is fitted to.
        is_test: ``[K]``, which it is judged on.

    Raises:
        ConfigError: a patient is on both sides, or too few cases of a class, or too few cases or patients altogether.
    """
    shared = len(np.intersect1d(groups[is_train], groups[is_test]))
    if shared:
        raise ConfigError(
            f"split: patients in both the training and the test cases: {shared}; give each patient one split, or say "
            "--evaluation cv"
        )
    sides = {"training ": (is_train, 2), "test ": (is_test, 1)}
    used = is_train | is_test
    kept, _ = _large_enough(
        target.only(used), groups[used], {name: (np.flatnonzero(side[used]), n) for name, (side, n) in sides.items()}
    )
    left = np.isin(target.rows, kept.rows)
    train, test = (np.flatnonzero(side[left]) for side in (is_train, is_test))
    if len(train) < _LEAST_TRAINING or len(test) < _LEAST_JUDGED:
        raise ConfigError(
            f"target '{target.name}': {len(train)} training and {len(test)} test cases are too few; "
            f"{_LEAST_TRAINING} and {_LEAST_JUDGED} are the least"
        )
    of_train, of_test = (len(np.unique(groups[left][side])) for side in (train, test))
    if min(of_train, of_test) < _LEAST_PATIENTS_A_SIDE:
        raise ConfigError(
            f"target '{target.name}': {of_train} training and {of_test} test patients are too few; "
            f"{_LEAST_PATIENTS_A_SIDE} of each are the least; choose another target or label more patients"
        )
    if any(len(np.unique(kept.values[side])) < 2 for side in (train, test)):
        raise ConfigError(f"target '{target.name}': is the same for all training or test cases; choose another")
    return kept, [(train, test)]


def held_out(
    features: Sequence[Floats],
    target: ProbeTarget,
    groups: NDArray[Any],
    folds: Folds,
    probe: Probe,
    seed: int = 0,
    standardise: bool = True,
) -> HeldOut:
    """Fit a probe to each fold's training cases, its strength chosen among them alone, and predict the test cases.

    Args:
        features: for each fold ``[K, D]``, as its training cases gave them.
        target: K cases.
        groups: ``[K]``, their patients.
        folds: as from :func:`cross_validation` or :func:`train_and_test`.
        probe: which.
        seed: of the inner folds, and of the boosting.
        standardise: each feature, see :func:`~monai_diffae.latents.probing.probes.fit_probe`.

    Example:
        >>> from monai_diffae.latents.probing.targets import read_probe_target
        >>> x, patients = np.random.default_rng(0).normal(size=(100, 3)), np.arange(100) // 2
        >>> target, folds = cross_validation(read_probe_target(list(x[:, 0] > 0), "large"), patients)
        >>> result = held_out([x] * len(folds), target, patients, folds, "linear")
        >>> result.predicted.shape, bool(result.scores()(np.ones(100))[0] > 0.95)
        ((100, 2), True)
    """
    num_classes = _num_classes(target)
    parts, classes, strengths = [], [], []
    for x, (train, test) in zip(features, folds, strict=True):
        fitted = fit_probe(probe, x[train], target.values[train], groups[train], num_classes, seed, standardise)
        parts.append(fitted.predict(x[test]))
        if num_classes is not None:
            classes.append(fitted.classify(parts[-1]))
        strengths.append(fitted.strength)
    tests = np.concatenate([test for _, test in folds])
    order = np.argsort(tests)
    fold = np.repeat(np.arange(len(folds)), [len(test) for _, test in folds])[order]
    judged = ProbeTarget(target.name, target.classes, target.values[tests[order]], target.rows[tests[order]])
    return HeldOut(
        judged, fold, np.concatenate(parts)[order], np.concatenate(classes)[order] if classes else None,
        tuple(strengths),
    )  # fmt: skip


def few_labels(
    features: Sequence[Floats],
    target: ProbeTarget,
    groups: NDArray[Any],
    folds: Folds,
    probe: Probe,
    *,
    num_patients: int,
    num_draws: int = 20,
    seed: int = 0,
    standardise: bool = True,
) -> Floats:
    """AUROC or R2 of a probe that was fitted to the labels of a few patients; ``[num_draws]``.

    Each draw takes patients from the training cases of a fold, the folds in turn, and is judged on all of the fold's
    test cases. A draw has at least two patients of each class, who come first; the others as chance will have it. With
    the same seed a larger draw holds the smaller one. Scores that are not defined are NaN.

    Args:
        features: for each fold ``[K, D]``.
        target: K cases.
        groups: ``[K]``, their patients.
        folds: as for :func:`held_out`.
        probe: which.
        num_patients: how many are labelled, all of their cases.
        num_draws: how often.
        seed: of the draws.
        standardise: each feature, see :func:`~monai_diffae.latents.probing.probes.fit_probe`.
    """
    scores = []
    for draw in range(num_draws):
        x, (train, test) = features[draw % len(folds)], folds[draw % len(folds)]
        chosen = _draw(target, groups, train, num_patients, np.random.default_rng([seed, draw]))
        if chosen is None:
            scores.append(float("nan"))
            continue
        one = held_out([x], target, groups, [(chosen, test)], probe, seed, standardise)
        scores.append(float(one.scores()(np.ones(len(test)))[0]))
    return np.array(scores)


def _draw(
    target: ProbeTarget, groups: NDArray[Any], train: NDArray[np.intp], num: int, generator: np.random.Generator
) -> NDArray[np.intp] | None:
    """The training cases of some patients; None where there are not as many."""
    patients = generator.permutation(np.unique(groups[train]))
    first: list[Any] = []
    if target.classes is not None:
        for label in np.unique(target.values[train]):
            of_class = np.unique(groups[train][target.values[train] == label])
            first += patients[np.isin(patients, of_class)][:_LEAST_LABELLED].tolist()
    chosen = list(dict.fromkeys([*first, *patients.tolist()]))[:num]
    if len(set(first)) > num or len(chosen) < num:
        return None
    return train[np.isin(groups[train], chosen)]


def _num_classes(target: ProbeTarget) -> int | None:
    return None if target.classes is None else len(target.classes)


def _large_enough(
    target: ProbeTarget, groups: NDArray[Any], sides: dict[str, tuple[NDArray[np.intp], int]]
) -> tuple[ProbeTarget, NDArray[Any]]:
    """Without the classes that have fewer patients on a side than are needed there."""
    if target.classes is None:
        return target, groups
    counts = {side: (target.patients_of_classes(groups, rows), least) for side, (rows, least) in sides.items()}
    large = [name for name in target.classes if all(found[name] >= least for found, least in counts.values())]
    if len(large) < 2:
        listed = "; ".join(
            f"{', '.join(f'{name}: {n}' for name, n in found.items())} {side}patients, at least {least} needed"
            for side, (found, least) in counts.items()
        )
        raise ConfigError(f"target '{target.name}': two classes or more must be large enough ({listed}); "
                          "choose another target or label more patients")  # fmt: skip
    keep = np.isin(np.array(target.classes)[target.values], large)
    return target.only(keep), groups[keep]
