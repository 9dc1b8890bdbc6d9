"""Probes and a nuisance, such as the scanner: how well it is told, and what is predicted with one value left out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monai_diffae.errors import ConfigError
from monai_diffae.latents.probing.nested import predict_held_out
from monai_diffae.latents.probing.probes import Floats, Folds
from monai_diffae.latents.probing.scores import bootstrapped, bounded_interval, difference_interval, interval, plain
from monai_diffae.latents.targets import class_name, missing

if TYPE_CHECKING:
    from monai_diffae.latents.probing.evaluation import EvaluatedProbe, TargetFeatures, TargetFolds

logger = logging.getLogger(__name__)

_ACCURACY = "balanced_accuracy"
_LEFT_OUT = [f"left_out_{name}" for name in ("score", "low", "high", "change", "change_low", "change_high")]
_LEAST_FITTED = 4  # cases


def with_nuisance(target: TargetFolds, table: pd.DataFrame, name: str | None) -> TargetFolds:
    """The folds of a target with the nuisance of each case, if there is one."""
    if name is None:
        return target
    values = table[name].iloc[target.target.rows].tolist()
    names = np.where(missing(values), "", [class_name(value) for value in values])
    if num := int((names == "").sum()):
        logger.warning("nuisance: %d cases without '%s' are not used when it is left out", num, name)
    return replace(target, nuisance=names)


def add_nuisance(rows: Sequence[dict[str, Any]], told: Sequence[Mapping[str, Any]], num_values: int) -> None:
    """Add how well the nuisance can be told, from rows of scores, to those of the same features and probe."""
    by_probe = {(row["features"], row["probe"]): row for row in told}
    for row in rows:
        scores = by_probe[row["features"], row["probe"]]
        row.update({f"nuisance_accuracy{end}": scores[f"{_ACCURACY}{end}"] for end in ("", "_low", "_high")})
        row["nuisance_chance"] = 1 / num_values


def left_out_scores(probe: EvaluatedProbe, data: TargetFeatures) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Score a probe that is fitted without one value of the nuisance and tested on it, for each value in turn.

    The score over all values, with its interval and its change from the usual probe on the same cases and draws of
    patients; and one row per value. Nothing, with a warning, if no training cases are left without one of the values.
    """
    row, usual, target, seed = probe.row, probe.predictions, data.target, data.settings.seed
    nuisance, rows = np.asarray(target.nuisance), target.target.rows
    try:
        folds = _left_out_folds(target, nuisance)
    except ConfigError as error:
        logger.warning("%s", error)
        return {}, []
    x = [data.features.extract(rows[train])[rows] for train, _ in folds]
    predictions = predict_held_out(x, target.target, target.patients, folds, data.model(row["probe"]))
    tested = np.sort(np.concatenate([test for _, test in folds]))
    kept = np.isin(target.test_cases, tested)
    baseline = None if usual.baseline is None else usual.baseline[kept]
    scores, usual_scores = replace(predictions, baseline=baseline).scores(), usual.scores()
    names, value = np.unique(nuisance[tested], return_inverse=True)
    masks = [np.ones(len(tested), bool), *(value == k for k in range(len(names)))]

    def every_score(weights: Floats) -> Floats:
        all_weights = np.zeros(len(kept))
        all_weights[kept] = weights
        parts = [scores(weights * mask)[0] if weights[mask].any() else np.nan for mask in masks]
        return np.array([*parts, usual_scores(all_weights)[0]])

    patients, truth, is_class = target.patients[tested], target.target.values[tested], target.target.classes is not None
    values = every_score(np.ones(len(tested)))
    draws = bootstrapped(every_score, patients, seed, row["num_folds"])
    counts = [  # patients of the rarest class
        min(len(np.unique(patients[mask & (truth == code)])) for code in np.unique(truth[mask])) if is_class else 0
        for mask in masks
    ]
    ends = [
        bounded_interval(number, column, num) if is_class else interval(column)
        for number, column, num in zip(values, draws.T, counts, strict=False)
    ]
    change, change_draws = values[0] - values[-1], draws[:, 0] - draws[:, -1]
    gap = difference_interval(change, change_draws, counts[0]) if is_class else interval(change_draws)
    overall = dict(zip(_LEFT_OUT, (values[0], *ends[0], change, *gap), strict=True))
    key = {name: row[name] for name in ("target", "features", "probe", "metric")}
    return {name: plain(number) for name, number in overall.items()}, [
        {**key, "left_out": str(name), "num_test": int(mask.sum()), "score": plain(number), "low": plain(low),
         "high": plain(high)}
        for name, mask, number, (low, high) in zip(names, masks[1:], values[1:-1], ends[1:], strict=True)
    ]  # fmt: skip


def _left_out_folds(target: TargetFolds, nuisance: NDArray[Any]) -> Folds:
    """Each fold, once for each value: fitted to the training cases of other values, tested on the test cases of it."""
    folds, values, name = [], target.target.values, target.target.name
    for train, test in target.folds:
        for value in np.unique(nuisance[test][nuisance[test] != ""]):
            fitted = train[(nuisance[train] != value) & (nuisance[train] != "")]
            tested = test[nuisance[test] == value]
            num_values = len(np.unique(values[fitted]))
            if len(fitted) < _LEAST_FITTED or num_values < (target.target.num_classes or 2):
                raise ConfigError(
                    f"target '{name}': without '{value}' of the nuisance, {len(fitted)} training cases with "
                    f"{num_values} different values are left, so it is not left out"
                )
            folds.append((fitted, tested))
    if not folds:
        raise ConfigError(f"target '{name}': no test case has the nuisance; fill in its column")
    return folds
