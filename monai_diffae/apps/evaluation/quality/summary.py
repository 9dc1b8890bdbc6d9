"""The rows of the tables: means over cases with intervals, and paired differences between bundles."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from monai_diffae.apps.evaluation.quality.journal import Row

Floats = NDArray[np.float64]

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


def mean_rows(case_rows: Iterable[Row], patients: Mapping[str, str]) -> list[Row]:
    """The mean of each metric over the cases, by condition, with its interval over the patients.

    The mean is over finite values. PSNR is infinite for a case that is reconstructed exactly: ``psnr_identical`` counts
    these, if there are any.

    Args:
        case_rows: rows with the fields of :data:`CONDITION`, an ``id``, and metrics.
        patients: the patient of each id.
    """
    rows = []
    for condition, metrics in _by_condition(case_rows):
        groups = [patients[name] for name in metrics.index]
        rows += _rows(condition, metrics, groups)
        num_infinite = np.isinf(metrics.astype(np.float64)).sum()
        rows += [
            summary_row(condition, f"{metric}_identical", num, None, len(metrics))
            for metric, num in num_infinite[num_infinite > 0].items()
        ]
    return rows


def difference_rows(case_rows: Iterable[Row], reference: str, patients: Mapping[str, str]) -> list[Row]:
    """The paired difference of each bundle to a reference, by condition: the metric of the bundle minus its own.

    Only cases and conditions that both have are compared.

    Args:
        case_rows: as for :func:`mean_rows`.
        reference: the name of the bundle that the others are compared with.
        patients: the patient of each id.
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
        made = _rows(condition, difference, groups)
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


def _rows(condition: Mapping[str, Any], metrics: pd.DataFrame, groups: Sequence[str]) -> list[Row]:
    """The mean of the finite values of each metric, with its interval."""
    rows = []
    for metric, column in metrics.astype(np.float64).items():
        is_finite = np.isfinite(column.to_numpy())
        values = column.to_numpy()[is_finite]
        ends = mean_interval(values, np.asarray(groups)[is_finite])
        value = values.mean() if len(values) else math.nan
        rows.append(summary_row(condition, str(metric), value, ends, len(values)))
    return rows


def mean_interval(values: Floats, groups: ArrayLike) -> tuple[float, float] | None:
    """The 95 % interval of a mean over cases ``[N]`` by Student's t over their patients; None with fewer than two.

    The standard error is that of a mean over clusters. With few patients, a bootstrap of them is too narrow.

    Example:
        >>> mean_interval(np.array([1.0, 2.0, 3.0, 3.0]), ["a", "b", "c", "c"])
        (-0.34..., 4.84...)
    """
    from scipy import stats

    member = np.unique(groups, return_inverse=True)[1]
    num = int(member.max(initial=-1)) + 1
    if num < 2:
        return None
    sums = np.bincount(member, values - values.mean())
    error = np.sqrt(np.square(sums).sum() * num / (num - 1)) / len(values)
    low, high = values.mean() + stats.t.ppf([0.025, 0.975], num - 1) * error
    return float(low), float(high)
