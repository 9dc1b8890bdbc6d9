"""Evaluation of probes: every target, predicted from several feature sets on the same cases, with scores."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monai_diffae.errors import CohortError, ConfigError
from monai_diffae.latents.probing.features import FeatureSet
from monai_diffae.latents.probing.nested import (
    HeldOutPredictions,
    cross_validation_folds,
    few_label_scores,
    predict_held_out,
    predict_path,
    split_folds,
)
from monai_diffae.latents.probing.nuisance import add_nuisance, left_out_scores, with_nuisance
from monai_diffae.latents.probing.probes import Floats, Folds, Probe, ProbeModel, inner_folds, regularisations
from monai_diffae.latents.probing.scores import ClassScores, bootstrapped, difference_interval, interval, plain
from monai_diffae.latents.targets import LabelKind, Target, copies_of, far_off, read_target
from monai_diffae.policies import check_choice

logger = logging.getLogger(__name__)

Evaluation = Literal["split", "cv"]
SplitOrigin = Literal["training", "given", "drawn"]  # as of monai_diffae.data.splits
_MIN_PATIENTS, _MIN_PATIENTS_OF_CLASS = 30, 10
# Numbers of labelled patients for the scores with few labels, as far as they are at most half of all
FEW_PATIENTS = (10, 30, 100, 300)


@dataclass(frozen=True, eq=False)
class ProbedCases:
    """The cases of a table that take part in a probe (``positions``), with patients and splits of all its rows."""

    positions: NDArray[np.intp]
    patients: NDArray[Any]
    splits: NDArray[np.str_]  # empty if the table has none
    split_origin: SplitOrigin | None = None

    @classmethod
    def from_table(
        cls, table: pd.DataFrame, is_available: NDArray[np.bool_], splits: Sequence[str] = (),
        split_origin: SplitOrigin | None = None,
    ) -> ProbedCases:  # fmt: skip
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
            logger.warning("%d cases are omitted: not all features are available for them", num_unavailable)
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
        """Whether each of some rows of the table is a training case, and whether it is a test case."""
        if not self.has_split:
            raise ConfigError(
                "evaluation: the table has no training cases, or no validation or test cases; set evaluation to cv, or "
                "embed a cohort with splits"
            )
        return self.splits[rows] == "train", self.splits[rows] == ("test" if "test" in self.splits else "val")

    def is_split_enough(self, target: Target) -> bool:
        """Whether the table's split has training cases and enough test patients, in total and of each class."""
        if not self.has_split:
            return False
        (is_train, is_test), patients = self.sides(target.rows), self.patients[target.rows]
        counts = target.patients_of_classes(patients, np.flatnonzero(is_test)).values()
        is_enough = len(np.unique(patients[is_test])) >= _MIN_PATIENTS and is_train.any()
        return bool(is_enough) and all(count >= _MIN_PATIENTS_OF_CLASS for count in counts)

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
    counts: dict[str, int]  # test patients of each class
    num_seen: int | None  # test cases of patients that the autoencoder was trained on, as far as is known
    nuisance: NDArray[np.str_] | None = None  # of each case, such as its scanner; empty text: it is not known

    @property
    def test_cases(self) -> NDArray[np.intp]:
        """The cases that are evaluated, as positions among the K cases, ascending."""
        return _test_cases(self.folds)

    @property
    def small_classes(self) -> dict[str, int]:
        """The test patients of classes that have fewer than 10."""
        return {label: count for label, count in self.counts.items() if count < _MIN_PATIENTS_OF_CLASS}


def _test_cases(folds: Folds) -> NDArray[np.intp]:
    return np.sort(np.concatenate([test for _, test in folds]))


def choose_folds(
    cases: ProbedCases, labels: Sequence[Any], name: str, settings: ProbeSettings, kind: LabelKind = "auto"
) -> TargetFolds:
    """Choose how a target is evaluated, by default by the table's split if it has enough test cases."""
    all_cases = read_target(labels, name, cases.positions, kind)
    evaluation = settings.evaluation
    if evaluation is None:
        evaluation = "split" if not settings.splits and cases.is_split_enough(all_cases) else "cv"
    if evaluation == "split":
        target, folds = split_folds(all_cases, cases.patients[all_cases.rows], *cases.sides(all_cases.rows))
        num_considered = int(sum(side.sum() for side in cases.sides(cases.positions)))
    else:
        target, folds = cross_validation_folds(all_cases, cases.patients[all_cases.rows], settings.seed)
        num_considered = len(cases.positions)
    patients, test = cases.patients[target.rows], _test_cases(folds)
    counts, num_seen = target.patients_of_classes(patients, test), cases.num_seen(patients[test])
    num_omitted = num_considered - len(target.rows)
    if num_omitted:
        logger.info("target '%s': %d cases without a usable label are omitted", name, num_omitted)
    if omitted := [label for label in all_cases.classes or () if label not in (target.classes or ())]:
        logger.warning("target '%s': classes with too few patients are omitted: %s", name, ", ".join(omitted))
    target_folds = TargetFolds(target, patients, folds, evaluation, num_omitted, counts, num_seen)
    for doubt in _doubts(target_folds, settings.seed):
        logger.warning("target '%s': %s", name, doubt)
    return target_folds


def _doubts(folds: TargetFolds, seed: int) -> Iterator[str]:
    """Whatever makes the scores unreliable."""
    target, patients = folds.target, folds.patients
    for label, count in folds.small_classes.items():
        yield f"there are only {count} test patients of class '{label}', so its scores are unreliable"
    num_patients = len(np.unique(patients[folds.test_cases]))
    if target.classes is None and num_patients < _MIN_PATIENTS_OF_CLASS:
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


def _warn_of_seen(targets: Sequence[TargetFolds], split_origin: SplitOrigin | None) -> None:
    """Log once for all targets how many test cases the autoencoder has seen."""
    most = max(targets, key=lambda target: target.num_seen or 0)
    if most.num_seen:
        logger.warning(
            "%sthe autoencoder was trained on patients of %d of the %d test cases (without labels), so the scores of "
            "z_sem may be too high; set splits to val and test to exclude them",
            "perhaps " if split_origin == "given" else "", most.num_seen, len(most.test_cases),
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class EvaluatedProbe:
    """One probe of one target from one feature set, evaluated."""

    row: dict[str, Any]  #: the scores
    predictions: HeldOutPredictions  #: the predictions for held-out patients
    #: scores with few labels, one row per number of patients; empty if they were not requested
    few_labels: list[dict[str, Any]] = field(default_factory=list)
    #: scores of ``linear`` with each regularisation, one row per value; empty as above
    regularisations: list[dict[str, Any]] = field(default_factory=list)
    #: scores with each value of the nuisance left out, one row per value; empty without a nuisance
    left_out: list[dict[str, Any]] = field(default_factory=list)


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

    def __post_init__(self) -> None:
        check_choice("evaluation", self.evaluation or "cv", Evaluation)
        for probe in self.probes:
            check_choice("probes", probe, Probe)
        if not self.probes:
            raise ConfigError(f"probes: is empty; choose from {', '.join(get_args(Probe))}")
        if self.splits and self.evaluation == "split":
            raise ConfigError("splits: applies to cross-validation; omit it, or set evaluation to cv")


def evaluate_probes(
    table: pd.DataFrame,
    targets: Iterable[str],
    feature_sets: Sequence[FeatureSet],
    settings: ProbeSettings,
    *,
    split_origin: SplitOrigin | None = None,
) -> tuple[list[EvaluatedProbe], dict[str, str]]:
    """Evaluate every combination of target, feature set and probe.

    Args:
        table: a table of embeddings.
        targets: its label columns, used one after the other (so that the caller can show progress).
        feature_sets: features of the table's cases; the first are z_sem, and the others are compared with them.
        settings: how to probe.
        split_origin: whether the table's split is that of the autoencoder's training, was given with the cohort, or was
            drawn for the table; None: unknown, and taken for that of the training.

    Returns:
        The evaluated probes; and for each target that cannot be probed, the reason.

    Raises:
        ConfigError: no target can be probed.
    """
    is_available = np.all([features.is_available for features in feature_sets], axis=0)
    cases = ProbedCases.from_table(table, is_available, settings.splits, split_origin)
    folds = None
    if (nuisance := settings.nuisance) is not None:  # first, so that one that cannot be told ends the command at once
        folds = choose_folds(cases, table[nuisance].tolist(), nuisance, settings, "classes")
    evaluated: list[EvaluatedProbe] = []
    chosen: list[TargetFolds] = []
    errors: dict[str, ConfigError] = {}
    for name in targets:
        try:
            kind = settings.kinds.get(name, "auto")
            target = choose_folds(cases, table[name].tolist(), name, settings, kind)
            evaluated += _evaluate_target(with_nuisance(target, table, settings.nuisance), feature_sets, settings)
            chosen.append(target)
        except ConfigError as error:
            errors[name] = error
    if not evaluated:
        raise next(iter(errors.values()))
    if folds is not None:
        defaults = ProbeSettings(probes=settings.probes, seed=settings.seed)
        told = [each.row for each in _evaluate_target(folds, feature_sets, defaults)]
        add_nuisance([each.row for each in evaluated], told, folds.target.num_classes or 1)
    _warn_of_seen(chosen, split_origin)
    return evaluated, {name: str(error).removeprefix(f"target '{name}': ") for name, error in errors.items()}


@dataclass(frozen=True, eq=False)
class TargetFeatures:
    """A target and one feature set, ``x`` of its K cases for each fold."""

    target: TargetFolds
    features: FeatureSet
    x: list[Floats]
    settings: ProbeSettings

    @classmethod
    def extract(cls, target: TargetFolds, features: FeatureSet, settings: ProbeSettings) -> TargetFeatures:
        """The features for the training cases of each fold."""
        rows = target.target.rows
        extracted = [features.extract(rows[train]) for train, _ in target.folds]
        unique = {id(x): x[rows] for x in extracted}  # often the same array for all folds
        return cls(target, features, [unique[id(x)] for x in extracted], settings)

    def model(self, probe: Probe) -> ProbeModel:
        """How a probe is fitted."""
        options = self.features.standardise, False, self.settings.regularisation
        return ProbeModel(probe, self.settings.seed, *options)

    @property
    def _data(self) -> tuple[list[Floats], Target, NDArray[Any], Folds]:
        return self.x, self.target.target, self.target.patients, self.target.folds

    def warn_of_copies(self) -> None:
        """Warn of features from which the target follows."""
        names = self.features.columns
        for column in copies_of(self.target.target, self.x[0]):
            label = repr(names[column]) if names else f"number {column + 1}"
            logger.warning(
                "features '%s': %s determines the target '%s'; remove it if it was derived from the target",
                self.features.name, label, self.target.target.name,
            )  # fmt: skip

    def evaluate(self, probe: Probe) -> tuple[EvaluatedProbe, Floats]:
        """An evaluated probe, and its main score in each draw of the bootstrap."""
        target, settings = self.target, self.settings
        predictions = predict_held_out(*self._data, self.model(probe))
        scores, test = predictions.scores(), target.test_cases
        patients = target.patients[test]
        values, draws = scores(np.ones(len(test))), bootstrapped(scores, patients, settings.seed, len(target.folds))
        metrics: dict[str, Any] = {}
        for name, value, (low, high) in zip(scores.metrics, values, scores.intervals(draws, patients), strict=True):
            metrics.update({name: plain(value), f"{name}_low": plain(low), f"{name}_high": plain(high)})
        main = scores.metrics[0]
        regularisation = [value for value in predictions.regularisation if value is not None]
        row = {
            "target": target.target.name, "kind": "numbers" if target.target.classes is None else "classes",
            "features": self.features.name, "dims": self.x[0].shape[1], "probe": probe,
            "metric": main, "score": metrics[main], "low": metrics[f"{main}_low"], "high": metrics[f"{main}_high"],
            "difference": None, "difference_low": None, "difference_high": None,
            "evaluation": target.evaluation, "num_folds": len(target.folds),
            "num_train": int(np.median([len(train) for train, _ in target.folds])), "num_test": len(test),
            "num_patients": len(np.unique(patients)), "num_omitted": target.num_omitted,
            "num_rarest": min(target.counts.values(), default=None), "num_seen_by_autoencoder": target.num_seen,
            "small_classes": "; ".join(f"{label}: {count}" for label, count in target.small_classes.items()) or None,
            "regularisation": float(np.exp(np.mean(np.log(regularisation)))) if regularisation else None,
            "is_regularisation_fixed": settings.regularisation is not None and probe == "linear", **metrics,
        }  # fmt: skip
        return EvaluatedProbe(row, predictions), draws[:, 0]

    def few_label_rows(self, probe: Probe) -> Iterator[dict[str, Any]]:
        """The quartiles of scores with the labels of few patients."""
        most = min(len(np.unique(self.target.patients[train])) for train, _ in self.target.folds) // 2
        for num_patients in (each for each in FEW_PATIENTS if each <= most):
            scores = few_label_scores(*self._data, self.model(probe), num_patients)
            scores = scores[np.isfinite(scores)]
            if len(scores):
                low, median, high = (float(q) for q in np.percentile(scores, [25, 50, 75]))
                yield {"num_patients": num_patients, "num_draws": len(scores), "median": median,
                       "low_quartile": low, "high_quartile": high}  # fmt: skip

    def regularisation_rows(self, probe: EvaluatedProbe) -> Iterator[dict[str, Any]]:
        """The held-out score with each regularisation, and in how many folds it was chosen (the strongest default)."""
        values = regularisations("linear", self.target.target.num_classes)
        chosen = [values[0] if value is None else value for value in probe.predictions.regularisation]
        if probe.row["is_regularisation_fixed"]:
            values = sorted({*values, *chosen}, reverse=values[0] > values[-1])
        x, target, _, folds = self._data
        for value, predictions in zip(
            values, predict_path(x, target, folds, self.model("linear"), values), strict=True
        ):
            score = predictions.scores()(np.ones(len(self.target.test_cases)))[0]
            yield {"regularisation": value, "score": plain(score), "num_folds_chosen": chosen.count(value)}


def _evaluate_target(
    target: TargetFolds, feature_sets: Sequence[FeatureSet], settings: ProbeSettings
) -> list[EvaluatedProbe]:
    evaluated: list[EvaluatedProbe] = []
    z_sem: dict[str, tuple[EvaluatedProbe, Floats]] = {}
    for features in feature_sets:
        data = TargetFeatures.extract(target, features, settings)
        data.warn_of_copies()
        for name in settings.probes:
            probe, draws = data.evaluate(name)
            key = {each: probe.row[each] for each in ("target", "features", "probe", "metric")}
            if settings.few_labels:
                probe.few_labels.extend(key | row for row in data.few_label_rows(name))
            if settings.each_regularisation and name == "linear":
                del key["probe"]
                probe.regularisations.extend(key | row for row in data.regularisation_rows(probe))
            if target.nuisance is not None:
                main, rows = left_out_scores(probe, data)
                probe.row.update(main)
                probe.left_out.extend(rows)
            if features is feature_sets[0]:
                z_sem[name] = probe, draws
            else:
                probe.row.update(_difference(z_sem[name], (probe, draws), target))
            evaluated.append(probe)
    return evaluated


def _difference(
    z_sem: tuple[EvaluatedProbe, Floats], other: tuple[EvaluatedProbe, Floats], target: TargetFolds
) -> dict[str, Any]:
    """The score of z_sem minus that of other features, with the interval over the same draws of patients."""
    scores, draws = other[0].predictions.scores(), z_sem[1] - other[1]
    value = z_sem[0].row["score"] - other[0].row["score"]
    if isinstance(scores, ClassScores):
        num = scores.patients_of_rarest_class(target.patients[target.test_cases])
        low, high = difference_interval(value, draws, num)
    else:
        low, high = interval(draws)
    return {"difference": plain(value), "difference_low": plain(low), "difference_high": plain(high)}
