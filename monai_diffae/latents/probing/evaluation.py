"""Evaluation of probes: every target, predicted from several feature sets on the same cases, with scores."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monai_diffae.errors import ConfigError
from monai_diffae.latents.harmonization import association
from monai_diffae.latents.probing import nested
from monai_diffae.latents.probing.nested import HeldOutPredictions, ProbeSettings, TargetFolds
from monai_diffae.latents.probing.probes import FeatureSet, Folds, Probe, ProbeModel, regularisations
from monai_diffae.latents.probing.scores import (
    bootstrapped,
    bounded_interval,
    difference_interval,
    p_value,
    patients_of_rarest,
    plain,
)
from monai_diffae.latents.statistics import Floats
from monai_diffae.latents.targets import Target, copies_of

logger = logging.getLogger(__name__)

# Numbers of labelled patients for the scores with few labels, as far as they are at most half of all
FEW_PATIENTS = (10, 30, 100, 300)
_ACCURACY = "balanced_accuracy"
_LEFT_OUT = [f"left_out_{name}" for name in ("score", "low", "high", "change", "change_low", "change_high")]
_LEAST_FITTED = 4  # cases


def _warn_of_seen(targets: Sequence[TargetFolds], name: str, split_origin: nested.SplitOrigin | None) -> None:
    """Log once for all targets how many test cases the encoder has seen, whose features are called ``name``."""
    most = max(targets, key=lambda target: target.num_seen or 0)
    if most.num_seen:
        logger.warning(
            "%s%s patients of %d of the %d test cases (without labels), so the scores of %s may be too high; "
            "set splits to val and test to exclude them",
            "perhaps " if split_origin == "given" else "",
            f"{name} was fitted to" if name in ("words", "pca", "planar") else "the autoencoder was trained on",
            most.num_seen,
            len(most.test_cases),
            name,
        )


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


def evaluate_probes(
    table: pd.DataFrame,
    targets: Iterable[str],
    feature_sets: Sequence[FeatureSet],
    settings: ProbeSettings,
    *,
    split_origin: nested.SplitOrigin | None = None,
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
    if settings.harmonize is not None:
        scanners = nested.value_names(table[settings.harmonize])
        feature_sets = [each.harmonized(scanners) for each in feature_sets]
    is_available = np.all([features.is_available for features in feature_sets], axis=0)
    cases = nested.ProbedCases.from_table(table, is_available, settings.splits, split_origin)
    folds = None
    if (nuisance := settings.nuisance) is not None:  # first, so that one that cannot be told ends the command at once
        as_classes = replace(settings, nuisance=None, kinds={nuisance: "classes"})
        folds = nested.choose_folds(cases, table, nuisance, as_classes)
    evaluated: list[EvaluatedProbe] = []
    chosen: list[TargetFolds] = []
    errors: dict[str, ConfigError] = {}
    for name in targets:
        try:
            target = nested.choose_folds(cases, table, name, settings)
            probes = _evaluate_target(target, feature_sets, settings)
            if settings.harmonize is not None:
                values, kept = target.target.values[:, None], scanners[target.target.rows]
                design = values if target.target.classes is None else values == np.unique(values)
                removed = {"harmonized": settings.harmonize, "association": association(design, kept, target.patients)}
                for each in probes:
                    each.row.update(removed)
            evaluated += probes
            chosen.append(target)
        except ConfigError as error:
            errors[name] = error
    if not evaluated:
        raise next(iter(errors.values()))
    if folds is not None:
        defaults = ProbeSettings(probes=settings.probes, seed=settings.seed)
        told = [each.row for each in _evaluate_target(folds, feature_sets, defaults)]
        by_probe = {(row["features"], row["probe"]): row for row in told}
        for row in (each.row for each in evaluated):
            scores = by_probe[row["features"], row["probe"]]
            row.update({f"nuisance_accuracy{end}": scores[f"{_ACCURACY}{end}"] for end in ("", "_low", "_high")})
            row["nuisance_chance"] = 1 / (folds.target.num_classes or 1)
    largest = max(len(train) for target in chosen for train, _ in target.folds)
    if "knn" in settings.probes and largest > nested.MOST_FOR_KNN:
        logger.info("knn compares with %d of up to %d training cases", nested.MOST_FOR_KNN, largest)
    _warn_of_seen(chosen, feature_sets[0].name, split_origin)
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
        return ProbeModel(probe, self.settings.seed, self.features.standardise, False, self.settings.regularisation)

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
                self.features.name,
                label,
                self.target.target.name,
            )

    def evaluate(self, probe: Probe) -> tuple[EvaluatedProbe, Floats]:
        """An evaluated probe, and its main score in each draw of the bootstrap."""
        target, settings = self.target, self.settings
        predictions = nested.predict_held_out(*self._data, self.model(probe))
        scores, test = predictions.scores(), target.test_cases
        patients = target.patients[test]
        values = scores(np.ones(len(test)))
        draws = bootstrapped(scores, patients, settings.seed, len(target.folds), scores.perfect)
        metrics: dict[str, Any] = {}
        for name, value, (low, high) in zip(scores.metrics, values, scores.intervals(draws, patients), strict=True):
            metrics.update({name: plain(value), f"{name}_low": plain(low), f"{name}_high": plain(high)})
        main = scores.metrics[0]
        regularisation = [value for value in predictions.regularisation if value is not None]
        row = {
            "target": target.target.name,
            "kind": "numbers" if target.target.classes is None else "classes",
            "features": self.features.name,
            "dims": self.x[0].shape[1],
            "probe": probe,
            "metric": main,
            "score": metrics[main],
            "low": metrics[f"{main}_low"],
            "high": metrics[f"{main}_high"],
            "p": p_value(scores, patients, settings.seed, len(target.folds)),
            "difference": None,
            "difference_low": None,
            "difference_high": None,
            "evaluation": target.evaluation,
            "num_folds": len(target.folds),
            "num_train": int(np.median([len(train) for train, _ in target.folds])),
            "num_test": len(test),
            "num_patients": len(np.unique(patients)),
            "num_omitted": target.num_omitted,
            "num_rarest": min(target.counts.values(), default=None),
            "num_seen_by_autoencoder": target.num_seen,
            **_confusion(predictions),
            "small_classes": "; ".join(f"{label}: {count}" for label, count in target.small_classes.items()) or None,
            "regularisation": float(np.exp(np.mean(np.log(regularisation)))) if regularisation else None,
            "is_regularisation_fixed": settings.regularisation is not None and probe == "linear",
            **metrics,
        }
        return EvaluatedProbe(row, predictions), draws[:, 0]

    def few_label_rows(self, probe: Probe) -> Iterator[dict[str, Any]]:
        """The quartiles of scores with the labels of few patients."""
        most = min(len(np.unique(self.target.patients[train])) for train, _ in self.target.folds) // 2
        for num_patients in (each for each in FEW_PATIENTS if each <= most):
            scores = nested.few_label_scores(*self._data, self.model(probe), num_patients)
            scores = scores[np.isfinite(scores)]
            if len(scores):
                low, median, high = (float(q) for q in np.percentile(scores, [25, 50, 75]))
                yield {
                    "num_patients": num_patients,
                    "num_draws": len(scores),
                    "median": median,
                    "low_quartile": low,
                    "high_quartile": high,
                }

    def regularisation_rows(self, probe: EvaluatedProbe) -> Iterator[dict[str, Any]]:
        """The held-out score with each regularisation, and in how many folds it was chosen (the strongest default)."""
        values = regularisations("linear", self.target.target.num_classes)
        chosen = [values[0] if value is None else value for value in probe.predictions.regularisation]
        if probe.row["is_regularisation_fixed"]:
            values = sorted({*values, *chosen}, reverse=values[0] > values[-1])
        (x, target, _, folds), model = self._data, self.model("linear")
        paths = [
            model.fit_path(each[train], target.values[train], target.num_classes, values)
            for each, (train, _) in zip(x, folds, strict=True)
        ]
        for value, fitted in zip(values, zip(*paths, strict=True), strict=True):
            predictions = nested.held_out_predictions(fitted, x, target, folds)
            score = predictions.scores()(np.ones(len(self.target.test_cases)))[0]
            yield {"regularisation": value, "score": plain(score), "num_folds_chosen": chosen.count(value)}


def _confusion(predictions: HeldOutPredictions) -> dict[str, Any]:
    """How many cases of each class were predicted as each class: rows are the true ones. Nothing for numbers."""
    from sklearn.metrics import confusion_matrix

    classes, truth = predictions.target.classes, predictions.target.values
    if classes is None or predictions.predicted_class is None:
        return {}
    counts = confusion_matrix(truth, predictions.predicted_class, labels=range(len(classes)))
    return {"classes": list(classes), "confusion": counts.tolist()}


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
            if target.nuisance is not None:
                main, rows = left_out_scores(probe, data)
                probe.row.update(main, nuisance=settings.nuisance)
                probe.left_out.extend(key | row for row in rows)
            if settings.few_labels:
                probe.few_labels.extend(key | row for row in data.few_label_rows(name))
            if settings.each_regularisation and name == "linear":
                del key["probe"]
                probe.regularisations.extend(key | row for row in data.regularisation_rows(probe))
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
    draws = z_sem[1] - other[1]
    value = z_sem[0].row["score"] - other[0].row["score"]
    low, high = difference_interval(value, draws, min(target.counts.values(), default=None))
    return {"difference": plain(value), "difference_low": plain(low), "difference_high": plain(high)}


# -- a nuisance, such as the scanner: how well it is told, and what is predicted with one value left out ---------------


def left_out_scores(probe: EvaluatedProbe, data: TargetFeatures) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Score a probe that is fitted without one value of the nuisance and tested on it, for each value in turn.

    The score within the values, with its interval and its change from that of the usual probe on the same cases and
    draws of patients; and one row per value. For both probes, differences between the values do not count: AUROCs are
    averaged, weighted by the patients of the rarest class, and the baseline of R2 is the mean of each value. None, with
    a warning, if no training cases are left without one of the values.
    """
    row, usual, target, seed = probe.row, probe.predictions, data.target, data.settings.seed
    nuisance, rows = np.asarray(target.nuisance), target.target.rows
    if not (folds := _left_out_folds(target, nuisance)):
        return dict.fromkeys(_LEFT_OUT), []
    x = [data.features.extract(rows[train])[rows] for train, _ in folds]
    predictions = nested.predict_held_out(x, target.target, target.patients, folds, data.model(row["probe"]))
    tested = target.test_cases
    every, member = np.unique(nuisance[tested], return_inverse=True)
    names = every[every != ""]
    masks = [nuisance[tested] == name for name in names]
    patients, truth, is_class = target.patients[tested], target.target.values[tested], target.target.classes is not None
    counts = np.array([patients_of_rarest(truth[mask], patients[mask]) for mask in masks])
    baseline = None if is_class else (np.bincount(member, truth) / np.bincount(member))[member]
    left_out_probe, usual_probe = (replace(each, baseline=baseline).scores() for each in (predictions, usual))

    def within(scores: Any, weights: Floats) -> list[float]:
        parts = [scores(weights * mask)[0] if weights[mask].any() else np.nan for mask in masks]
        shares = counts * np.isfinite(parts)
        mean = np.nan_to_num(parts) @ shares / (shares.sum() or np.nan)
        return [*parts, mean if is_class else scores(weights * (nuisance[tested] != ""))[0]]

    def every_score(weights: Floats) -> Floats:
        return np.array([*within(left_out_probe, weights), within(usual_probe, weights)[-1]])

    values = every_score(np.ones(len(tested)))
    draws = bootstrapped(every_score, patients, seed, row["num_folds"], None if is_class else 1)
    # the mean has the sum of the degrees of freedom
    sizes = [*counts, 1 + (counts - 1) @ np.isfinite(values[:-2])] if is_class else [None] * (len(values) - 1)
    ends = [bounded_interval(*each) for each in zip(values, draws.T, sizes, strict=False)]
    change, change_draws = values[-2] - values[-1], draws[:, -2] - draws[:, -1]
    gap = difference_interval(change, change_draws, sizes[-1])
    overall = dict(zip(_LEFT_OUT, (values[-2], *ends[-1], change, *gap), strict=True))
    return {name: plain(number) for name, number in overall.items()}, [
        {
            "left_out": str(name),
            "num_test": int(mask.sum()),
            "score": plain(number),
            "low": plain(low),
            "high": plain(high),
        }
        for name, mask, number, (low, high) in zip(names, masks, values, ends, strict=False)
    ]


def _left_out_folds(target: TargetFolds, nuisance: NDArray[Any]) -> Folds:
    """Each fold, once for each value: fitted to the training cases of others, tested on its test cases; or none."""
    folds, values, name = [], target.target.values, target.target.name
    for train, test in target.folds:
        for value in np.unique(nuisance[test]):  # where it is unknown, the prediction has no weight
            fitted = train[(nuisance[train] != value) & (nuisance[train] != "")]
            tested = test[nuisance[test] == value]
            num_values = len(np.unique(values[fitted]))
            if len(fitted) < _LEAST_FITTED or num_values < (target.target.num_classes or 2):
                logger.warning(
                    "target '%s': without '%s' of the nuisance, %d training cases with %d different values are left, "
                    "so it is not left out",
                    name,
                    value,
                    len(fitted),
                    num_values,
                )
                return []
            folds.append((fitted, tested))
    return folds
