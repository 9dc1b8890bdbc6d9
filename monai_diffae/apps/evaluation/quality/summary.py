"""The rows of the tables: means over cases with bootstrap intervals, and paired differences between bundles."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from monai_diffae.apps.evaluation.quality.journal import Row
from monai_diffae.latents.probing.scores import Floats, bootstrapped, interval

CONDITION = ("table", "bundle", "solver", "steps", "features", "timestep")
"""What a line of a table is about; fields that do not apply are None."""


def summary_row(
    condition: Mapping[str, Any], metric: str, value: float, ends: tuple[float, float] | None, num_cases: int
) -> Row:
    """One row of the tables.

    Args:
        condition: the fields of :data:`CONDITION` that apply.
        metric: the metric's name.
        value: its value.
        ends: its 95 % interval; None: not known.
        num_cases: how many cases it was measured on.

    Example:
        >>> row = summary_row({"table": "generation", "bundle": "b"}, "fid", 3.5, None, 8)
        >>> row["steps"], row["value"], row["low"]
        (None, 3.5, None)
    """
    low, high = ends or (math.nan, math.nan)
    return {
        **{name: condition.get(name) for name in CONDITION}, "metric": metric, "value": plain(value),
        "low": plain(low), "high": plain(high), "num_cases": num_cases,
    }  # fmt: skip


def plain(value: float) -> float | None:
    """A number for JSON, which has neither NaN nor infinity."""
    return float(value) if math.isfinite(value) else None


def mean_rows(case_rows: Iterable[Row], patients: Mapping[str, str], seed: int = 0) -> list[Row]:
    """The mean of each metric over the cases, by condition, with an interval from a bootstrap over the patients.

    The mean is over finite values. PSNR is infinite for a case that is reconstructed exactly: ``psnr_identical`` counts
    these, if there are any.

    Args:
        case_rows: rows with the fields of :data:`CONDITION`, an ``id``, and metrics.
        patients: the patient of each id.
        seed: random seed of the bootstrap.
    """
    rows = []
    for condition, metrics in _by_condition(case_rows):
        groups = [patients[name] for name in metrics.index]
        rows += _rows(condition, metrics, groups, seed)
        num_infinite = np.isinf(metrics.astype(np.float64)).sum()
        rows += [
            summary_row(condition, f"{metric}_identical", num, None, len(metrics))
            for metric, num in num_infinite[num_infinite > 0].items()
        ]
    return rows


def difference_rows(case_rows: Iterable[Row], reference: str, patients: Mapping[str, str], seed: int = 0) -> list[Row]:
    """The paired difference of each bundle to a reference, by condition: the metric of the bundle minus its own.

    Only cases and conditions that both have are compared, and the patients are drawn once for both.

    Args:
        case_rows: as for :func:`mean_rows`.
        reference: the name of the bundle that the others are compared with.
        patients: the patient of each id.
        seed: random seed of the bootstrap.
    """
    conditions = _by_condition(case_rows)
    of_reference = {_without_bundle(condition): metrics for condition, metrics in conditions
                    if condition["bundle"] == reference}  # fmt: skip
    rows = []
    for condition, metrics in conditions:
        other = of_reference.get(_without_bundle(condition))
        if condition["bundle"] == reference or other is None:
            continue
        difference = (metrics - other).dropna(axis="columns", how="all").dropna(axis="index", how="all")
        groups = [patients[name] for name in difference.index]
        made = _rows(condition, difference, groups, seed)
        rows += [{**row, "reference": reference} for row in made]
    return rows


def _by_condition(case_rows: Iterable[Row]) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """The metrics ``[cases, metrics]`` of each condition, indexed by the cases' ids."""
    grouped: dict[tuple[Any, ...], list[Row]] = {}
    for row in case_rows:
        grouped.setdefault(tuple(row.get(name) for name in CONDITION), []).append(row)
    tables = []
    for values, rows in grouped.items():
        table = pd.DataFrame(rows).set_index("id")
        tables.append((dict(zip(CONDITION, values, strict=True)), table.drop(columns=[*CONDITION], errors="ignore")))
    return tables


def _without_bundle(condition: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(value for name, value in condition.items() if name != "bundle")


def _rows(condition: Mapping[str, Any], metrics: pd.DataFrame, groups: Sequence[str], seed: int) -> list[Row]:
    """The mean of the finite values of each metric, with its interval."""
    values = metrics.to_numpy(np.float64)
    is_finite = np.isfinite(values)
    values = np.where(is_finite, values, 0)

    def means(weights: Floats) -> Floats:
        total = weights @ is_finite
        return np.divide(weights @ values, total, out=np.full(len(total), np.nan), where=total > 0)

    draws = bootstrapped(means, groups, seed)
    value, num = means(np.ones(len(values))), is_finite.sum(axis=0).tolist()
    return [summary_row(condition, metric, value[i], interval(draws[:, i]), num[i]) for i, metric in enumerate(metrics)]
