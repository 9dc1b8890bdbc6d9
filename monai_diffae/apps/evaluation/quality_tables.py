"""The tables of ``evaluate``: means over cases with intervals, differences between bundles, files and terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_diffae.lazy import np, pd

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

Row = dict[str, Any]

CONDITION = ("table", "bundle", "solver", "steps", "features", "timestep")
"""What a line of a table is about; fields that do not apply are None."""


def summary_row(
    condition: Mapping[str, Any], metric: str, value: float, ends: tuple[float, float] | None, num_cases: int
) -> Row:
    """One row of the tables; ``condition`` has the fields of :data:`CONDITION` that apply."""
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
    """The paired difference of each bundle to a reference, by condition: the metric of the bundle minus its own."""
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


TABLES = {
    "reconstruction": "Reconstruction from both codes, with each image's own inverted x_T",
    "z_sem_only": "Reconstruction from z_sem alone, with sampled x_T",
    "generation": "Synthetic images, with z_sem from the latent DDIM",
    "z_sem": "z_sem",
}
"""The tables and their titles."""

_BETTER = {
    "mse": "lower", "psnr": "higher", "ssim": "higher", "ms_ssim": "higher", "lpips": "lower", "fid": "lower",
    "kid": "lower", "mmd": "lower", "precision": "higher", "recall": "higher", "disentanglement": "higher",
    "completeness": "higher", "informativeness": "higher",
}  # fmt: skip
_ARROWS = {"lower": " ↓", "higher": " ↑", None: ""}


def write_tables(folder: Path, rows: Sequence[Row]) -> list[Path]:
    """Write ``tables/<table>.csv``, one line per condition, for each table that has rows, and return the files."""
    from monai_diffae.data.atomic import write_csv

    files = []
    for table in TABLES:
        lines = wide_lines(rows, table)
        if lines:
            files.append(write_csv(folder / "tables" / f"{table}.csv", pd.DataFrame(lines)))
    return files


def write_markdown(file: Path, rows: Sequence[Row], notes: Sequence[str]) -> None:
    """Write all tables in Markdown, ready for a paper, below notes on how they were measured."""
    from monai_diffae.data.atomic import write_atomic

    text = "\n\n".join(["\n".join(notes), *_markdown_tables(rows)]) + "\n"
    write_atomic(file, lambda path: path.write_text(text, encoding="utf-8"))


def wide_lines(rows: Iterable[Row], table: str) -> list[dict[str, Any]]:
    """The lines of a table: the condition, then ``<metric>``, ``<metric>_low`` and ``<metric>_high`` of each metric."""
    lines: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        if row["table"] != table:
            continue
        condition = tuple(_condition_of(row).values())
        line = lines.setdefault(condition, {**_condition_of(row), "num_cases": row["num_cases"]})
        line[row["metric"]] = row["value"]
        if row["low"] is not None:
            line |= {f"{row['metric']}_low": row["low"], f"{row['metric']}_high": row["high"]}
    fields = [name for name in CONDITION if any(line.get(name) is not None for line in lines.values())]
    return [
        {**{name: line[name] for name in fields}, **{k: v for k, v in line.items() if k not in CONDITION}}
        for line in lines.values()
    ]


def _condition_of(row: Row) -> dict[str, Any]:
    return {name: row.get(name) for name in CONDITION if name != "table"}


def _markdown_tables(rows: Sequence[Row]) -> Iterator[str]:
    for table, title in TABLES.items():
        lines = wide_lines(rows, table)
        if not lines:
            continue
        yield f"**{title}**"
        for group in _alike(lines):
            shown = [name for name in _shown(group[0]) if any(line[name] is not None for line in group)]
            head = [f"{name}{_ARROWS[_BETTER.get(name)]}" for name in shown]
            body = [[_cell(line, name) for name in shown] for line in group]
            cells = [head, ["---"] * len(shown), *body]
            yield "\n".join("| " + " | ".join(row) + " |" for row in cells)


def _alike(lines: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The lines in groups that have the same metrics, so that no table is full of empty cells."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault(tuple(_shown(line)), []).append(line)
    return list(groups.values())


def _shown(line: Iterable[str]) -> list[str]:
    """The columns of a line without the ends of intervals, which stand beside their values."""
    return [name for name in line if not name.endswith(("_low", "_high"))]


def _cell(line: dict[str, Any], name: str) -> str:
    value = line.get(name)
    if value is None:
        return ""
    if f"{name}_low" in line:
        return f"{short(value)} ({short(line[f'{name}_low'])}-{short(line[f'{name}_high'])})"
    return short(value)


def short(value: Any) -> str:
    """A number with three digits that matter; whole numbers and text as they are."""
    if not isinstance(value, float):
        return str(value)
    if value == 0 or 0.01 <= abs(value) < 1:
        return f"{value:.3f}"
    return f"{value:.2e}" if abs(value) < 0.01 or abs(value) >= 1e5 else f"{value:#.3g}".removesuffix(".")


def result_lines(rows: Sequence[Row]) -> Iterator[str]:
    """Each table with its title, without intervals, which are in the files."""
    from rich.table import Table

    from monai_diffae.apps.result import table_lines

    for name, title in TABLES.items():
        lines = wide_lines(rows, name)
        if not lines:
            continue
        columns = [c for c in dict.fromkeys(c for line in lines for c in line) if not c.endswith(("_low", "_high"))]
        table = Table(*columns, box=None)
        for line in lines:
            table.add_row(*("" if line.get(column) is None else short(line[column]) for column in columns))
        yield title
        yield from table_lines(table)
        yield ""
