"""Which cases of a table a probe is fitted to, and its predictions for held-out patients, with all labels or few.

The predictions come from nested cross-validation or from one split.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monai_diffae.errors import CohortError, ConfigError, counted
from monai_diffae.latents.harmonization import LEAST_FITTED
from monai_diffae.latents.neighbors import nearest_neighbors, numbered_groups
from monai_diffae.latents.probing.probes import FittedProbe, Folds, Probe, ProbeModel, grouped_folds, inner_folds
from monai_diffae.latents.probing.scores import ClassScores, NumberScores, with_interval
from monai_diffae.latents.statistics import Floats
from monai_diffae.latents.targets import LabelKind, Target, class_name, far_off, missing, read_target

logger = logging.getLogger(__name__)

Evaluation = Literal["split", "cv"]
SplitOrigin = Literal["training", "given", "drawn"]  # as of monai_diffae.data.cases

_MIN_CASES, _MIN_TRAINING = 6, 4
_MIN_PATIENTS = 3  # patients of each class in cross-validation: one to test, two to train and choose a regularisation
_MIN_PATIENTS_PER_SIDE = 2  # training patients, and test patients: one gives neither a regularisation nor an interval
_MIN_TEST, _MIN_TEST_OF_CLASS = 30, 10  # patients of a split; with fewer, the table is cross-validated
_MIN_LABELLED = 2  # patients of each class in a draw of few labels
_DRAWS = 20  # of few labels
_NUM_NEIGHBORS = 5
MOST_FOR_KNN = 10_000
"""The most training cases that the probe ``knn`` compares with."""
_FEWEST_PATIENTS = 10  # held-out patients with the label; fewer say nothing


@dataclass(frozen=True)
class ProbeSettings:
    """How to probe."""

    #: ``split`` fits to the training cases of the table and evaluates on its test cases (``val`` if it has none);
    #: ``cv`` is nested cross-validation. None: ``split`` if the table has training cases and enough test patients (30,
    #: and 10 of each class), else ``cv``
    evaluation: Evaluation | None = None
    splits: tuple[str, ...] = ()  #: use only the cases of these splits, in cross-validation
    probes: tuple[Probe, ...] = ("linear", "knn")  #: ``linear``, ``knn``, ``boosting``
    seed: int = 0  #: random seed
    #: for some targets, whether they are ``classes`` or ``numbers``
    kinds: Mapping[str, LabelKind] = field(default_factory=dict)
    few_labels: bool = False  #: also evaluate with few labels
    #: C (for classes) or alpha (for numbers) of ``linear``, fixed beforehand; None: chosen
    regularisation: float | None = None
    each_regularisation: bool = False  #: also evaluate ``linear`` with each regularisation that it can choose from
    #: a column such as the scanner: how well it can be told, and the probes with each value left out
    nuisance: str | None = None
    harmonize: str | None = None  #: a column such as the scanner, whose effect on all features is removed in every fold


@dataclass(frozen=True, eq=False)
class ProbedCases:
    """The cases of a table that take part in a probe (``positions``), with patients and splits of all its rows."""

    positions: NDArray[np.intp]
    patients: NDArray[Any]
    splits: NDArray[np.str_]  # empty if the table has none
    split_origin: SplitOrigin | None = None

    @classmethod
    def from_table(
        cls,
        table: pd.DataFrame,
        is_available: NDArray[np.bool_],
        splits: Sequence[str] = (),
        split_origin: SplitOrigin | None = None,
    ) -> ProbedCases:
        """The cases for which all features are available, only those of the given splits if there are any."""
        ids = [str(case) for case in (table["id"] if "id" in table else range(len(table)))]
        names = table["patient"] if "patient" in table else [None] * len(ids)
        if "patient" not in table:
            logger.warning("the table has no column patient: each case counts as a patient of its own")
        patients = [f"case {case}" if pd.isna(name) else str(name) for case, name in zip(ids, names, strict=True)]
        split_of_rows = table["split"].astype(str).to_numpy(str) if "split" in table else np.array([], str)
        existing = sorted(set(split_of_rows.tolist()))
        if missing := [name for name in splits if name not in existing]:
            raise ConfigError(f"splits: the table has no split '{missing[0]}'; it has {', '.join(existing) or 'none'}")
        is_in_splits = np.isin(split_of_rows, list(splits)) if splits else np.ones(len(table), bool)
        if num_unavailable := int((is_in_splits & ~is_available).sum()):
            text = "%s omitted, for which not all features are available"
            logger.warning(text, counted(num_unavailable, "case"))
        if not (is_in_splits & is_available).any():
            raise CohortError("probe: no case has all features; give features of the same cases")
        order = np.argsort(np.array(ids), kind="stable")  # patients are hashes, which differ between folders
        if split_origin == "drawn":
            logger.warning(
                "it is not known which cases the autoencoder was trained on: the split was drawn at random for this "
                "table; if it was trained on some, their scores may be too high"
            )
        return cls(order[(is_in_splits & is_available)[order]], np.array(patients), split_of_rows, split_origin)

    @property
    def has_split(self) -> bool:
        """Whether the table has training cases, and validation or test cases."""
        return "train" in self.splits and bool({"val", "test"} & {*self.splits})

    def sides(self, rows: NDArray[np.intp]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Whether the probe is fitted to each of some rows of the table, and whether it is tested on it."""
        if not self.has_split:
            raise ConfigError(
                "evaluation: the table has no training cases, or no validation or test cases; set evaluation to cv, or "
                "embed a cohort with splits"
            )
        is_test = self.splits[rows] == ("test" if "test" in self.splits else "val")
        return np.isin(self.splits[rows], ("train", "val")) & ~is_test, is_test

    def is_split_enough(self, target: Target) -> bool:
        """Whether the table's split has training cases and enough test patients, in total and of each class."""
        if not self.has_split:
            return False
        (is_train, is_test), patients = self.sides(target.rows), self.patients[target.rows]
        counts = target.patients_of_classes(patients, np.flatnonzero(is_test)).values()
        is_enough = len(np.unique(patients[is_test])) >= _MIN_TEST and is_train.any()
        return bool(is_enough) and all(count >= _MIN_TEST_OF_CLASS for count in counts)

    def num_seen(self, patients: NDArray[Any]) -> int | None:
        """How many cases are of patients that the autoencoder was trained on; None: it is not known."""
        if self.split_origin == "drawn":
            return None
        return int(np.isin(patients, self.patients[: len(self.splits)][self.splits == "train"]).sum())


@dataclass(frozen=True, eq=False)
class TargetFolds:
    """A target of K cases, the patients ``[K]``, and the folds in which it is evaluated, as positions among them."""

    target: Target
    patients: NDArray[Any]
    folds: Folds
    evaluation: Evaluation
    num_omitted: int  # cases without the label, or of a class that is too small to be evaluated
    num_seen: int | None  # test cases of patients that the autoencoder was trained on, as far as is known
    nuisance: NDArray[np.str_] | None = None  # of each case, such as its scanner; empty text: it is not known

    @property
    def test_cases(self) -> NDArray[np.intp]:
        """The cases that are evaluated, as positions among the K cases, ascending."""
        return np.sort(np.concatenate([test for _, test in self.folds]))

    @cached_property
    def counts(self) -> dict[str, int]:
        """The test patients of each class."""
        return self.target.patients_of_classes(self.patients, self.test_cases)

    @property
    def small_classes(self) -> dict[str, int]:
        """The test patients of classes that have fewer than 10."""
        return {label: count for label, count in self.counts.items() if count < _MIN_TEST_OF_CLASS}


def choose_folds(cases: ProbedCases, table: pd.DataFrame, name: str, settings: ProbeSettings) -> TargetFolds:
    """Choose how a target is evaluated, by default by the table's split if it has enough test cases."""
    all_cases = read_target(table[name].tolist(), name, cases.positions, settings.kinds.get(name, "auto"))
    evaluation = settings.evaluation
    if evaluation is None:
        evaluation = "split" if not settings.splits and cases.is_split_enough(all_cases) else "cv"
    if evaluation == "split":
        target, folds = split_folds(all_cases, cases.patients[all_cases.rows], *cases.sides(all_cases.rows))
        num_considered = int(sum(side.sum() for side in cases.sides(cases.positions)))
    else:
        target, folds = cross_validation_folds(all_cases, cases.patients[all_cases.rows], settings.seed)
        num_considered = len(cases.positions)
    if settings.harmonize is not None:
        scanners = value_names(table[settings.harmonize])
        counts = [Counter(scanners[target.rows[train]]) for train, _ in folds]
        names = [each for each in counts[0] if each and min(count[each] for count in counts) >= LEAST_FITTED]
        is_omitted = ~np.isin(scanners[cases.positions], names)
        if len(names) < 2:
            raise ConfigError(f"harmonize: fewer than two scanners have {LEAST_FITTED} training cases; omit harmonize")
        if num := int(is_omitted.sum()):
            text = "target '%s': %s omitted, without '%s' or of one with fewer than %d training cases in a fold"
            logger.warning(text, name, counted(num, "case"), settings.harmonize, LEAST_FITTED)
            return choose_folds(replace(cases, positions=cases.positions[~is_omitted]), table, name, settings)
    if num_omitted := num_considered - len(target.rows):
        logger.info("target '%s': %s omitted, without a usable label", name, counted(num_omitted, "case"))
    if omitted := [label for label in all_cases.classes or () if label not in (target.classes or ())]:
        logger.warning("target '%s': classes with too few patients are omitted: %s", name, ", ".join(omitted))
    patients = cases.patients[target.rows]
    num_seen = cases.num_seen(np.concatenate([patients[test] for _, test in folds]))
    nuisance = None
    if settings.nuisance is not None:
        nuisance = value_names(table[settings.nuisance])[target.rows]
        if num := int((nuisance == "").sum()):
            text = "nuisance: %s without '%s', not used when it is left out"
            logger.warning(text, counted(num, "case"), settings.nuisance)
    target_folds = TargetFolds(target, patients, folds, evaluation, num_omitted, num_seen, nuisance)
    for doubt in _doubts(target_folds, settings.seed):
        logger.warning("target '%s': %s", name, doubt)
    return target_folds


def value_names(column: pd.Series[Any]) -> NDArray[np.str_]:
    """The values of a column as text, which is empty where there is none."""
    return np.where(missing(values := column.tolist()), "", [*map(class_name, values)])


def _doubts(folds: TargetFolds, seed: int) -> Iterator[str]:
    """Whatever makes the scores unreliable."""
    target, patients = folds.target, folds.patients
    for label, count in folds.small_classes.items():
        yield f"there are only {count} test patients of class '{label}', so its scores are unreliable"
    num_patients = len(np.unique(patients[folds.test_cases]))
    if target.classes is None and num_patients < _MIN_TEST_OF_CLASS:
        yield f"there are only {num_patients} test patients, so its scores are unreliable"
    trained = (train for train, _ in folds.folds)
    if few := sum(not inner_folds(target.values[rows], patients[rows], target.num_classes, seed) for rows in trained):
        yield (
            f"{few} of {len(folds.folds)} folds have too few training patients to choose a regularisation, so the "
            "strongest is used; label more patients"
        )
    if target.classes is None and (is_far := far_off(target.values)).any():
        outliers = target.values[is_far]
        yield (
            f"{len(outliers)} of {len(is_far)} values are far from all others, such as "
            f"{outliers[abs(outliers).argmax()]:g}, and can dominate the scores; correct or empty them if they are "
            "errors or codes"
        )


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
            f"target '{target.name}': {counted(len(target.rows), 'case')} of {counted(patients, 'patient')} are too "
            f"few; at least {_MIN_CASES} cases of {_MIN_PATIENTS} patients are needed"
        )
    return target, grouped_folds(target.values, groups, target.num_classes, seed)


def split_folds(
    target: Target, groups: NDArray[Any], is_train: NDArray[np.bool_], is_test: NDArray[np.bool_]
) -> tuple[Target, Folds]:
    """A given split as the only fold, and the target without classes that are too small."""
    num_shared = len(np.intersect1d(groups[is_train], groups[is_test]))
    if num_shared:
        raise ConfigError(
            f"evaluation: {counted(num_shared, 'patient')} with both training and test cases; give each patient "
            "one split, or set evaluation to cv"
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
    """Fit a probe to the training cases of each fold, with the fold's ``features``, and predict its test cases.

    Of more than 10,000 training cases, ``knn`` uses as many that are drawn at random.
    """
    if model.name == "knn":
        draw = np.random.default_rng(model.seed).permutation
        folds = [(np.sort(draw(train)[:MOST_FOR_KNN]), test) for train, test in folds]
    fitted = [
        model.fit(x[train], target.values[train], groups[train], target.num_classes)
        for x, (train, _) in zip(features, folds, strict=True)
    ]
    return held_out_predictions(fitted, features, target, folds)


def held_out_predictions(
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
