"""Predictions for held-out patients, from nested cross-validation or from one split, with all labels or few."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_diffae.errors import ConfigError
from monai_diffae.latents.neighbors import nearest_neighbors, numbered_groups
from monai_diffae.latents.probing.probes import FittedProbe, Floats, Folds, ProbeModel, grouped_folds
from monai_diffae.latents.probing.scores import ClassScores, NumberScores, with_interval
from monai_diffae.latents.targets import Target, read_target

_MIN_CASES, _MIN_TRAINING = 6, 4
_MIN_PATIENTS = 3  # patients of each class in cross-validation: one to test, two to train and choose a regularisation
_MIN_PATIENTS_PER_SIDE = 2  # training patients, and test patients: one gives neither a regularisation nor an interval
_MIN_LABELLED = 2  # patients of each class in a draw of few labels
_DRAWS = 20  # of few labels
_NUM_NEIGHBORS = 5
_FEWEST_PATIENTS = 10  # held-out patients with the label; fewer say nothing


@dataclass(frozen=True, eq=False)
class HeldOutPredictions:
    """Predictions for the test cases, each by a probe that was not fitted to its patient."""

    target: Target  #: the target of the K test cases, with the classes of all cases
    fold: NDArray[np.intp]  #: ``[K]``, the fold in which each case was predicted
    predicted: Floats  #: ``[K, classes]`` probabilities, or ``[K]`` numbers
    #: ``[K]``, for numbers in cross-validation, the mean of the fold's training cases, which R2 compares the
    #: predictions with; else None
    baseline: Floats | None
    #: ``[K, classes]``, values that rank the cases of all folds together, for AUROC and AUPRC; None for numbers. See
    #: :meth:`~monai_diffae.latents.probing.FittedProbe.ranking`
    ranking: Floats | None
    #: ``[K]``, the class that would be most probable if all were equally frequent among the training cases; None for
    #: numbers
    predicted_class: NDArray[np.intp] | None
    regularisation: tuple[float | None, ...]  #: the regularisation of the probe of each fold

    def scores(self) -> ClassScores | NumberScores:
        """The scores of the predictions, as a function of the cases' weights."""
        if self.target.classes is None:
            return NumberScores(self.target.values, self.predicted, self.baseline)
        return ClassScores(self.target.values, self.predicted, self.predicted_class, self.ranking)


def cross_validation_folds(target: Target, groups: NDArray[Any], seed: int = 0) -> tuple[Target, Folds]:
    """The outer folds of nested cross-validation over patients, and the target without classes that are too small."""
    target, groups = _without_small_classes(target, groups, {"": (np.arange(len(target.rows)), _MIN_PATIENTS)})
    patients = len(np.unique(groups))
    if len(target.rows) < _MIN_CASES or patients < _MIN_PATIENTS:
        raise ConfigError(
            f"target '{target.name}': {len(target.rows)} cases of {patients} patients are too few; "
            f"at least {_MIN_CASES} cases of {_MIN_PATIENTS} patients are needed"
        )
    return target, grouped_folds(target.values, groups, target.num_classes, seed)


def split_folds(
    target: Target, groups: NDArray[Any], is_train: NDArray[np.bool_], is_test: NDArray[np.bool_]
) -> tuple[Target, Folds]:
    """A given split as the only fold, and the target without classes that are too small."""
    num_shared = len(np.intersect1d(groups[is_train], groups[is_test]))
    if num_shared:
        raise ConfigError(
            f"evaluation: {num_shared} patients have both training and test cases; give each patient one split, or "
            "set evaluation to cv"
        )
    sides = {"training ": (is_train, 2), "test ": (is_test, 1)}
    is_used = is_train | is_test
    rows_of_sides = {name: (np.flatnonzero(side[is_used]), least) for name, (side, least) in sides.items()}
    target_used, _ = _without_small_classes(target.only(is_used), groups[is_used], rows_of_sides)
    is_kept = np.isin(target.rows, target_used.rows)
    train, test = (np.flatnonzero(side[is_kept]) for side in (is_train, is_test))
    num_train, num_test = (len(np.unique(groups[is_kept][side])) for side in (train, test))
    if len(train) < _MIN_TRAINING or min(num_train, num_test) < _MIN_PATIENTS_PER_SIDE:
        raise ConfigError(
            f"target '{target.name}': {num_train} training and {num_test} test patients are too few; at least "
            f"{_MIN_PATIENTS_PER_SIDE} of each, and {_MIN_TRAINING} training cases, are needed; choose another target, "
            "or label more patients"
        )
    if any(len(np.unique(target_used.values[side])) < 2 for side in (train, test)):
        raise ConfigError(
            f"target '{target.name}': is the same for all training or all test cases; choose another target"
        )
    return target_used, [(train, test)]


def predict_held_out(
    features: Sequence[Floats], target: Target, groups: NDArray[Any], folds: Folds, model: ProbeModel
) -> HeldOutPredictions:
    """Fit a probe to the training cases of each fold, with the ``features`` of this fold, and predict its test cases.

    The regularisation is chosen within the training cases of the fold.
    """
    fitted = [
        model.fit(x[train], target.values[train], groups[train], target.num_classes)
        for x, (train, _) in zip(features, folds, strict=True)
    ]
    return _held_out(fitted, features, target, folds)


def predict_path(
    features: Sequence[Floats], target: Target, folds: Folds, model: ProbeModel, values: Sequence[float]
) -> list[HeldOutPredictions]:
    """The predictions of a probe with each regularisation."""
    paths = [
        list(model.fit_path(x[train], target.values[train], target.num_classes, values))
        for x, (train, _) in zip(features, folds, strict=True)
    ]
    return [_held_out(fitted, features, target, folds) for fitted in zip(*paths, strict=True)]


def _held_out(
    probes: Sequence[FittedProbe], features: Sequence[Floats], target: Target, folds: Folds
) -> HeldOutPredictions:
    """The predictions of the probe of each fold for its test cases."""
    fits = list(zip(probes, features, folds, strict=True))  # without copies of the features, which may be large
    tests = np.concatenate([test for _, test in folds])
    order = np.argsort(tests)
    fold = np.repeat(np.arange(len(folds)), [len(test) for _, test in folds])[order]
    predictions = [fitted.predict(x[test]) for fitted, x, (_, test) in fits]
    baseline = ranking = classes = None
    if target.classes is not None:
        ranking = np.concatenate([fitted.ranking(x[test], x[train]) for fitted, x, (train, test) in fits])[order]
        classes = np.concatenate([each.classify(p) for each, p in zip(probes, predictions, strict=True)])[order]
    elif len(folds) > 1:
        baseline = np.array([target.values[train].mean() for train, _ in folds])[fold]
    regularisation = tuple(each.regularisation for each in probes)
    predicted = np.concatenate(predictions)[order]
    return HeldOutPredictions(target.at(tests[order]), fold, predicted, baseline, ranking, classes, regularisation)


def few_label_scores(
    features: Sequence[Floats], target: Target, groups: NDArray[Any], folds: Folds, model: ProbeModel, num_patients: int
) -> Floats:
    """AUROC or R2 ``[draws]`` of probes that are fitted to all cases of a few patients; NaN if it is not defined.

    Each draw selects patients from the training cases of every fold, and predicts all test cases; with several folds,
    there are half as many draws. A draw has at least two patients of each class; the others are selected at random, and
    a draw of more patients contains the draw of fewer. The draws share their test cases, and with many patients also
    most training cases, so their spread is no confidence interval.
    """
    scores = np.full(_DRAWS if len(folds) == 1 else -(-_DRAWS // 2), np.nan)
    for draw in range(len(scores)):
        labelled = [_draw(target, groups, train, num_patients, [model.seed, draw]) for train, _ in folds]
        few = [(train, test) for train, (_, test) in zip(labelled, folds, strict=True) if train is not None]
        if len(few) == len(folds):
            predictions = predict_held_out(features, target, groups, few, model)
            scores[draw] = predictions.scores()(np.ones(len(predictions.fold)))[0]
    return scores


def _draw(
    target: Target, groups: NDArray[Any], train: NDArray[np.intp], num: int, seed: Sequence[int]
) -> NDArray[np.intp] | None:
    """The training cases of ``num`` random patients; None if there are not as many."""
    member = numbered_groups(groups[train])
    patients = np.random.default_rng(seed).permutation(int(member.max()) + 1)
    first: list[Any] = []
    for label in np.unique(target.values[train]) if target.classes is not None else ():
        first += patients[np.isin(patients, member[target.values[train] == label])][:_MIN_LABELLED].tolist()
    drawn = list(dict.fromkeys([*first, *patients.tolist()]))[:num]
    if len(set(first)) > num or len(drawn) < num:
        return None
    return train[np.isin(member, drawn)]


def _without_small_classes(
    target: Target, groups: NDArray[Any], sides: dict[str, tuple[NDArray[np.intp], int]]
) -> tuple[Target, NDArray[Any]]:
    """The target and its patients without classes that have too few patients on a side."""
    if target.classes is None:
        return target, groups
    counts = {side: (target.patients_of_classes(groups, rows), least) for side, (rows, least) in sides.items()}
    large = [name for name in target.classes if all(count[name] >= least for count, least in counts.values())]
    if len(large) < 2:
        listed = "; ".join(
            f"{', '.join(f'{name}: {n}' for name, n in count.items())} {side}patients, at least {least} needed"
            for side, (count, least) in counts.items()
        )
        raise ConfigError(
            f"target '{target.name}': at least two classes must be large enough ({listed}); choose another target, or "
            "label more patients"
        )
    keep = np.isin(np.array(target.classes)[target.values], large)
    return target.only(keep), groups[keep]


@dataclass(frozen=True)
class QuickScores:
    """How well z_sem predicts a label of held-out patients."""

    score: float  #: AUROC of a linear probe for classes (0.5 is chance), R2 for numbers (0 is chance)
    low: float  #: lower end of its 95% interval, from a bootstrap over the held-out patients
    high: float  #: upper end
    #: agreement of a held-out case with its 5 nearest training cases. For classes: how many of these have its class, as
    #: a mean over the classes (1 / number of classes is chance); for numbers: the correlation with their mean (0 is
    #: chance)
    neighbors: float


@dataclass(frozen=True, eq=False)
class QuickProbe:
    """A label, and the cases on which it is probed: a linear model learns from some and predicts the others.

    For classes it is a ridge regression of each class against the rest, which is much faster than a logistic one. As in
    ``probe``, z_sem keeps its scales.
    """

    target: Target  #: the label of K cases; its rows are those of the N cases
    patients: NDArray[Any]  #: ``[K]``, their patients
    train: NDArray[np.intp]  #: positions of the training cases among the K
    test: NDArray[np.intp]  #: positions of the held-out cases

    @classmethod
    def choose(
        cls, labels: Sequence[Any], name: str, patients: NDArray[Any], is_train: NDArray[np.bool_]
    ) -> QuickProbe:
        """Choose the cases of a label ``[N]`` without small classes; those that are not ``is_train`` are held out."""
        every = read_target(labels, name)
        sides = is_train[every.rows], ~is_train[every.rows]
        target, [(train, test)] = split_folds(every, patients[every.rows], *sides)
        kept = patients[target.rows]
        if (count := len(np.unique(kept[test]))) < _FEWEST_PATIENTS:
            raise ConfigError(
                f"target '{name}': {count} held-out patients are too few; at least {_FEWEST_PATIENTS} are needed"
            )
        return cls(target, kept, train, test)

    def scores(self, z: Floats, seed: int = 0) -> QuickScores:
        """Probe z_sem ``[N, D]`` of all N cases; ``seed`` is that of the folds and of the bootstrap."""
        x = z[self.target.rows]
        predicted, truth = self._predicted(x, seed), self.target.values[self.test]
        is_number = self.target.classes is None
        scores = NumberScores(truth, predicted[:, 0]) if is_number else ClassScores(truth, predicted)
        return QuickScores(*with_interval(scores, self.patients[self.test], seed), self._agreement(x))

    def _predicted(self, x: Floats, seed: int) -> Floats:
        """A column of predictions for each class, or one column of numbers, for the held-out cases."""
        values, num_classes = self.target.values, self.target.num_classes
        first = 1 if num_classes == 2 else 0
        columns = [values] if num_classes is None else [values == k for k in range(first, num_classes)]
        train, groups = self.train, self.patients[self.train]
        ridge = ProbeModel("linear", seed, standardise=False)
        fitted = [ridge.fit(x[train], y[train].astype(np.float64), groups, None) for y in columns]
        predicted = np.stack([probe.predict(x[self.test]) for probe in fitted], axis=1)
        return np.concatenate([-predicted, predicted], axis=1) if num_classes == 2 else predicted

    def _agreement(self, x: Floats) -> float:
        nearest = nearest_neighbors(x[self.test], x[self.train], min(_NUM_NEIGHBORS, len(self.train)))
        theirs = self.target.values[self.train][nearest.indices]
        own = self.target.values[self.test]
        if self.target.classes is not None:
            share = (theirs == own[:, None]).mean(axis=1)
            return float(np.mean([share[own == k].mean() for k in np.unique(own)]))
        mean = theirs.mean(axis=1)
        return float(np.corrcoef(mean, own)[0, 1]) if np.ptp(mean) > 0 else 0.0
