"""Evaluation of probes: every target, predicted from several feature sets on the same cases, with scores."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import pandas as pd

from monai_diffae.errors import ConfigError
from monai_diffae.latents.probing.features import FeatureSet
from monai_diffae.latents.probing.folds import Evaluation, ProbedCases, SplitOrigin, TargetFolds, choose_folds
from monai_diffae.latents.probing.nested import HeldOutPredictions, few_label_scores, predict_held_out
from monai_diffae.latents.probing.probes import Floats, Probe
from monai_diffae.latents.probing.scores import ClassScores, bootstrapped, difference_interval, interval
from monai_diffae.latents.probing.targets import copies_of
from monai_diffae.latents.targets import LabelKind

logger = logging.getLogger(__name__)

FEW_PATIENTS = (10, 30, 100, 300)
"""Numbers of labelled patients for the scores with few labels, as far as they are at most half of all."""


@dataclass(frozen=True, eq=False)
class EvaluatedProbe:
    """One probe of one target from one feature set, evaluated.

    Attributes:
        row: the scores.
        predictions: the predictions for held-out patients.
        few_labels: scores with few labels, one row per number of patients; empty if they were not requested.
    """

    row: dict[str, Any]
    predictions: HeldOutPredictions
    few_labels: list[dict[str, Any]]


@dataclass(frozen=True)
class ProbeSettings:
    """How to probe.

    Attributes:
        evaluation: ``split`` fits to the training cases of the table and evaluates on its test cases (``val`` if it has
            none); ``cv`` is nested cross-validation. None: ``split`` if the table has training cases and enough test
            patients (30, and 10 of each class), else ``cv``.
        splits: use only the cases of these splits, in cross-validation.
        probes: ``linear``, ``knn``, ``boosting``.
        seed: random seed.
        kinds: for some targets, whether they are ``classes`` or ``numbers``.
    """

    evaluation: Evaluation | None = None
    splits: tuple[str, ...] = ()
    probes: tuple[Probe, ...] = ("linear", "knn")
    seed: int = 0
    kinds: Mapping[str, LabelKind] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.evaluation is not None and self.evaluation not in get_args(Evaluation):
            raise ConfigError(f"evaluation: {self.evaluation!r} is not one of {', '.join(get_args(Evaluation))}")
        if self.splits and self.evaluation == "split":
            raise ConfigError("splits: applies to cross-validation; omit it, or set evaluation to cv")
        unknown = [name for name in self.probes if name not in get_args(Probe)]
        if unknown:
            raise ConfigError(f"probes: {unknown[0]!r} is not one of {', '.join(get_args(Probe))}")
        if not self.probes:
            raise ConfigError(f"probes: is empty; choose from {', '.join(get_args(Probe))}")


def evaluate_probes(
    table: pd.DataFrame,
    targets: Iterable[str],
    feature_sets: Sequence[FeatureSet],
    settings: ProbeSettings,
    *,
    with_few_labels: bool,
    split_origin: SplitOrigin | None = None,
) -> tuple[list[EvaluatedProbe], dict[str, str]]:
    """Evaluate every combination of target, feature set and probe.

    Args:
        table: a table of embeddings.
        targets: its label columns, used one after the other (so that the caller can show progress).
        feature_sets: features of the table's cases; the first are z_sem, and the others are compared with them.
        settings: how to probe.
        with_few_labels: also evaluate with few labels.
        split_origin: whether the table's split is that of the autoencoder's training, was given with the cohort, or was
            drawn for the table; None: unknown, and taken for that of the training.

    Returns:
        The evaluated probes; and for each target that cannot be probed, the reason.

    Raises:
        ConfigError: no target can be probed.
    """
    is_available = np.all([features.is_available for features in feature_sets], axis=0)
    cases = ProbedCases.from_table(table, is_available, settings.splits, split_origin)
    evaluated: list[EvaluatedProbe] = []
    errors: dict[str, ConfigError] = {}
    for name in targets:
        try:
            target = choose_folds(
                cases, table[name].tolist(), name, settings.evaluation, settings.seed,
                settings.kinds.get(name, "auto"),
            )  # fmt: skip
            evaluated += _evaluate_target(target, feature_sets, settings, with_few_labels)
        except ConfigError as error:
            errors[name] = error
    if not evaluated:
        raise next(iter(errors.values()))
    return evaluated, {name: str(error).removeprefix(f"target '{name}': ") for name, error in errors.items()}


def _evaluate_target(
    target: TargetFolds, feature_sets: Sequence[FeatureSet], settings: ProbeSettings, with_few_labels: bool
) -> list[EvaluatedProbe]:
    evaluated: list[EvaluatedProbe] = []
    z_sem: dict[str, tuple[EvaluatedProbe, Floats]] = {}
    for features in feature_sets:
        x_by_fold = _features_by_fold(features, target)
        _warn_of_copies(features, target, x_by_fold[0])
        for name in settings.probes:
            probe, draws = _evaluate_probe(features, x_by_fold, target, name, settings.seed)
            if with_few_labels:
                probe.few_labels.extend(_few_label_rows(probe.row, features, x_by_fold, target, settings.seed))
            if features is feature_sets[0]:
                z_sem[name] = probe, draws
            else:
                probe.row.update(_difference(z_sem[name], (probe, draws), target))
            evaluated.append(probe)
    return evaluated


def _features_by_fold(features: FeatureSet, target: TargetFolds) -> list[Floats]:
    """The features ``[K, D]`` of the target's cases for each fold, as extracted for its training cases."""
    rows = target.target.rows
    extracted = [features.extract(rows[train]) for train, _ in target.folds]
    unique = {id(x): x[rows] for x in extracted}  # often the same array for all folds
    return [unique[id(x)] for x in extracted]


def _warn_of_copies(features: FeatureSet, target: TargetFolds, x: Floats) -> None:
    for column in copies_of(target.target, x):
        label = repr(features.columns[column]) if features.columns else f"number {column + 1}"
        logger.warning(
            "features '%s': %s determines the target '%s'; remove it if it was derived from the target",
            features.name, label, target.target.name,
        )  # fmt: skip


def _evaluate_probe(
    features: FeatureSet, x_by_fold: Sequence[Floats], target: TargetFolds, probe: Probe, seed: int
) -> tuple[EvaluatedProbe, Floats]:
    """An evaluated probe, and its main score in each draw of the bootstrap."""
    predictions = predict_held_out(
        x_by_fold, target.target, target.patients, target.folds, probe, seed, features.standardise
    )
    scores, test = predictions.scores(), target.test_cases
    values, draws = scores(np.ones(len(test))), bootstrapped(scores, target.patients[test], seed, len(target.folds))
    intervals = scores.intervals(draws, target.patients[test])
    metrics: dict[str, Any] = {}
    for name, value, (low, high) in zip(scores.metrics, values, intervals, strict=True):
        metrics.update({name: _plain(value), f"{name}_low": _plain(low), f"{name}_high": _plain(high)})
    main = scores.metrics[0]
    regularisation = [value for value in predictions.regularisation if value is not None]
    row = {
        "target": target.target.name, "kind": "numbers" if target.target.classes is None else "classes",
        "features": features.name, "dims": x_by_fold[0].shape[1], "probe": probe,
        "metric": main, "score": metrics[main], "low": metrics[f"{main}_low"], "high": metrics[f"{main}_high"],
        "difference": None, "difference_low": None, "difference_high": None,
        "evaluation": target.evaluation, "num_folds": len(target.folds),
        "num_train": int(np.median([len(train) for train, _ in target.folds])), "num_test": len(test),
        "num_patients": len(np.unique(target.patients[test])), "num_omitted": target.num_omitted,
        "num_seen_by_autoencoder": target.num_seen,
        "small_classes": "; ".join(f"{label}: {count}" for label, count in target.small_classes.items()) or None,
        "regularisation": float(np.exp(np.mean(np.log(regularisation)))) if regularisation else None, **metrics,
    }  # fmt: skip
    return EvaluatedProbe(row, predictions, []), draws[:, 0]


def _few_label_rows(
    row: Mapping[str, Any], features: FeatureSet, x_by_fold: Sequence[Floats], target: TargetFolds, seed: int
) -> list[dict[str, Any]]:
    rows = []
    most = min(len(np.unique(target.patients[train])) for train, _ in target.folds) // 2
    for num_patients in (each for each in FEW_PATIENTS if each <= most):
        scores = few_label_scores(
            x_by_fold, target.target, target.patients, target.folds, row["probe"], num_patients=num_patients,
            seed=seed, standardise=features.standardise,
        )  # fmt: skip
        scores = scores[np.isfinite(scores)]
        if len(scores):
            low, median, high = (float(q) for q in np.percentile(scores, [25, 50, 75]))
            rows.append({
                **{key: row[key] for key in ("target", "features", "probe", "metric")}, "num_patients": num_patients,
                "num_draws": len(scores), "median": median, "low_quartile": low, "high_quartile": high,
            })  # fmt: skip
    return rows


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
    return {"difference": _plain(value), "difference_low": _plain(low), "difference_high": _plain(high)}


def _plain(value: float) -> float | None:
    """A number for JSON, which has no NaN."""
    return float(value) if math.isfinite(value) else None
