"""Probes of a table's targets, each of several kinds of features on the same cases, and their scores."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pandas as pd

from monai_diffae.errors import ConfigError
from monai_diffae.latents.probing.features import FeatureSet
from monai_diffae.latents.probing.folds import Cases, Chosen, Evaluation, choose_folds
from monai_diffae.latents.probing.nested import HeldOut, few_labels, held_out
from monai_diffae.latents.probing.probes import Floats, Probe
from monai_diffae.latents.probing.scores import bootstrapped, interval
from monai_diffae.latents.probing.targets import copies_of

logger = logging.getLogger(__name__)

FEW = (10, 30, 100, 300)


@dataclass(frozen=True, eq=False)
class Judged:
    """A probe of some features, judged.

    Attributes:
        row: its scores.
        held_out: its predictions.
        few: how well it does with few labels, a row a number of patients; none where that was not asked for.
    """

    row: dict[str, Any]
    held_out: HeldOut
    few: list[dict[str, Any]]


@dataclass(frozen=True)
class ProbeSettings:
    """How to probe.

    Attributes:
        evaluation: ``split``: fitted to the training cases of the table, judged on its test cases (or ``val`` without
            any); ``cv``: nested cross-validation. None: ``split`` where the table has training cases and enough test
            patients (30, and 10 of each class), else ``cv``.
        splits: only the cases of these, in cross-validation.
        probes: ``linear``, ``knn``, ``boosting``.
        seed: of everything random.
    """

    evaluation: Evaluation | None = None
    splits: tuple[str, ...] = ()
    probes: tuple[Probe, ...] = ("linear", "knn")
    seed: int = 0

    def __post_init__(self) -> None:
        if self.evaluation is not None and self.evaluation not in get_args(Evaluation):
            raise ConfigError(f"evaluation: {self.evaluation!r} is not one of {', '.join(get_args(Evaluation))}")
        if self.splits and self.evaluation == "split":
            raise ConfigError("splits: goes with cross-validation; leave it out, or say --evaluation cv")
        unknown = [name for name in self.probes if name not in get_args(Probe)]
        if unknown or not self.probes:
            word = repr(unknown[0]) if unknown else "nothing"
            raise ConfigError(f"probes: {word} is not one of {', '.join(get_args(Probe))}")


def judge(
    table: pd.DataFrame, targets: Iterable[str], sets: Sequence[FeatureSet], settings: ProbeSettings, *, with_few: bool
) -> tuple[list[Judged], dict[str, str]]:
    """Judge every target with every kind of features and every probe.

    Args:
        table: of embeddings.
        targets: its label columns, taken one after the other (so the caller can show progress).
        sets: the kinds of features, z_sem first: the others are compared with it.
        settings: how.
        with_few: also with few labels.

    Returns:
        The probes, judged; and of the targets that cannot be probed, why.

    Raises:
        ConfigError: no target can be probed.
    """
    cases = Cases.of(table, np.all([features.there for features in sets], axis=0), settings.splits)
    results: list[Judged] = []
    errors: dict[str, ConfigError] = {}
    for target in targets:
        try:
            chosen = choose_folds(cases, table[target].tolist(), target, settings.evaluation, settings.seed)
            results += _judge_target(chosen, sets, settings, with_few)
        except ConfigError as error:
            errors[target] = error
    if not results:
        raise next(iter(errors.values()))
    return results, {target: str(error).removeprefix(f"target '{target}': ") for target, error in errors.items()}


def _judge_target(chosen: Chosen, sets: Sequence[FeatureSet], settings: ProbeSettings, with_few: bool) -> list[Judged]:
    results: list[Judged] = []
    of_z: dict[str, tuple[float, Floats]] = {}
    for features in sets:
        by_fold = _by_fold(features, chosen)
        for column in copies_of(chosen.target, by_fold[0]):
            which = repr(features.columns[column]) if features.columns else f"number {column + 1}"
            logger.warning(
                "features '%s': %s says the target '%s' one to one; if it was made from it, leave it out",
                features.name, which, chosen.target.name,
            )  # fmt: skip
        for name in settings.probes:
            judged, draws = _judge_one(features, by_fold, chosen, name, settings.seed, with_few)
            if features is sets[0]:
                of_z[name] = judged.row["score"], draws
            else:
                judged.row.update(_difference(of_z[name], (judged.row["score"], draws)))
            results.append(judged)
    return results


def _by_fold(features: FeatureSet, chosen: Chosen) -> list[Floats]:
    """The features of the target's cases, for each fold as its training cases gave them."""
    rows = chosen.target.rows
    extracted = [features.extract(rows[train]) for train, _ in chosen.folds]
    once = {id(x): x[rows] for x in extracted}  # mostly the same for all folds
    return [once[id(x)] for x in extracted]


def _judge_one(
    features: FeatureSet, by_fold: Sequence[Floats], chosen: Chosen, probe: Probe, seed: int, with_few: bool
) -> tuple[Judged, Floats]:
    """A probe's row, and its main metric in each draw of the bootstrap."""
    target, folds = chosen.target, chosen.folds
    made = held_out(by_fold, target, chosen.patients, folds, probe, seed, features.standardise)
    judged = np.sort(np.concatenate([test for _, test in folds]))
    scores = made.scores()
    values, draws = scores(np.ones(len(judged))), bootstrapped(scores, chosen.patients[judged], seed)
    ends = [interval(column) for column in draws.T]
    main = scores.metrics[0]
    metrics: dict[str, Any] = {}
    for name, value, (low, high) in zip(scores.metrics, values, ends, strict=True):
        metrics.update({name: _plain(value), f"{name}_low": _plain(low), f"{name}_high": _plain(high)})
    strengths = [strength for strength in made.strengths if strength is not None]
    row = {
        "target": target.name, "features": features.name, "dims": by_fold[0].shape[1], "probe": probe,
        "metric": main, "score": metrics[main], "low": metrics[f"{main}_low"], "high": metrics[f"{main}_high"],
        "difference": None, "difference_low": None, "difference_high": None,
        "evaluation": chosen.evaluation, "num_folds": len(folds),
        "num_train": int(np.median([len(train) for train, _ in folds])), "num_test": len(judged),
        "num_patients": len(np.unique(chosen.patients[judged])), "num_left_out": chosen.num_left_out,
        "num_seen_by_autoencoder": chosen.num_seen,
        "small_classes": "; ".join(f"{label}: {count}" for label, count in chosen.small_classes.items()) or None,
        "strength": float(np.exp(np.mean(np.log(strengths)))) if strengths else None, **metrics,
    }  # fmt: skip
    few = _few(row, by_fold, chosen, seed, features.standardise) if with_few else []
    return Judged(row, made, few), draws[:, 0]


def _few(
    row: Mapping[str, Any], by_fold: Sequence[Floats], chosen: Chosen, seed: int, standardise: bool
) -> list[dict[str, Any]]:
    rows = []
    for num_patients in FEW:
        scores = few_labels(
            by_fold,
            chosen.target,
            chosen.patients,
            chosen.folds,
            row["probe"],
            num_patients=num_patients,
            seed=seed,
            standardise=standardise,
        )
        scores = scores[np.isfinite(scores)]
        if len(scores):
            low, middle, high = (float(q) for q in np.percentile(scores, [25, 50, 75]))
            rows.append({
                **{key: row[key] for key in ("target", "features", "probe", "metric")}, "num_patients": num_patients,
                "num_draws": len(scores), "median": middle, "low_quartile": low, "high_quartile": high,
            })  # fmt: skip
    return rows


def _difference(of_z: tuple[float, Floats], other: tuple[float, Floats]) -> dict[str, Any]:
    """z_sem's score less another's, over the same draws of patients."""
    low, high = interval(of_z[1] - other[1])
    return {
        "difference": _plain(of_z[0] - other[0]), "difference_low": _plain(low), "difference_high": _plain(high)
    }  # fmt: skip


def _plain(value: float) -> float | None:
    """A number as JSON has it, which knows no NaN."""
    return float(value) if math.isfinite(value) else None
