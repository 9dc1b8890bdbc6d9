"""The rows of ``evaluate``, kept in parts on disk, and its tables: means with intervals, differences, files."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from monai_diffae.apps.result import table_lines
from monai_diffae.apps.settings import Process
from monai_diffae.data.atomic import PartStore, write_atomic, write_csv
from monai_diffae.data.fingerprints import json_digest
from monai_diffae.lazy import on_first_use

with on_first_use:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

if TYPE_CHECKING:
    Floats = npt.NDArray[np.float64]

logger = logging.getLogger(__name__)

Row = dict[str, Any]

_POLL_S = 0.1
_PATIENCE_BATCHES = 10

# What a line of a table is about; fields that do not apply are None
CONDITION = ("table", "bundle", "solver", "steps", "features", "timestep", "change")


def summary_row(
    condition: Mapping[str, Any], metric: str, value: float, ends: tuple[float, float] | None, num_cases: int
) -> Row:
    """One row of the tables; ``condition`` has the fields of :data:`CONDITION` that apply."""
    low, high = ends or (math.nan, math.nan)
    return {
        **{name: condition.get(name) for name in CONDITION},
        "metric": metric,
        "value": plain(value),
        "low": plain(low),
        "high": plain(high),
        "num_cases": num_cases,
    }


def plain(value: float) -> float | None:
    """A number for JSON, which has neither NaN nor infinity."""
    return float(value) if math.isfinite(value) else None


def mean_rows(case_rows: Iterable[Row], patients: Mapping[str, str]) -> list[Row]:
    """The mean of the finite values of each metric, by condition; ``<metric>_identical`` counts infinite PSNRs."""
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
    rows = []
    for condition, metrics in conditions:
        same = [each for other, each in conditions if {**condition, "bundle": reference} == other]
        if condition["bundle"] != reference and same:
            difference = (metrics - same[0]).dropna(axis="columns", how="all").dropna(axis="index", how="all")
            made = _rows(condition, difference, [patients[name] for name in difference.index])
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


def mean_interval(values: Floats, groups: npt.ArrayLike) -> tuple[float, float] | None:
    """The 95 % interval of a mean over cases ``[N]``: Student's t over clusters, the patients; None for one patient."""
    from scipy import stats

    member = np.unique(groups, return_inverse=True)[1]
    num = int(member.max(initial=-1)) + 1
    if num < 2:
        return None
    sums = np.bincount(member, values - values.mean())
    error = np.sqrt(np.square(sums).sum() * num / (num - 1)) / len(values)
    low, high = values.mean() + stats.t.ppf([0.025, 0.975], num - 1) * error
    return float(max(low, min(0, values.min()))), float(high)  # an error, which is never negative, has no mean below 0


TABLES = {
    "reconstruction": "Reconstruction from both codes, with each image's own inverted x_T",
    "z_sem_only": "Reconstruction from z_sem alone, with sampled x_T",
    "generation": "Synthetic images, with z_sem from the latent DDIM",
    "z_sem": "z_sem",
    "noise_levels": "Use of z_sem by noise level",
    "stability": "Stability of z_sem",
}
"""The tables and their titles."""

_ARROWS = dict.fromkeys(("mse", "lpips", "fid", "kid", "mmd"), " ↓") | dict.fromkeys(
    ("psnr", "ssim", "ms_ssim", "precision", "recall", "disentanglement", "completeness", "informativeness"), " ↑"
)


def write_tables(folder: Path, rows: Sequence[Row], notes: Sequence[str]) -> list[Path]:
    """Write each table as CSV, and all as Markdown for a paper, below notes on how they were measured: the files."""
    tables = {folder / "tables" / f"{name}.csv": pd.DataFrame(lines) for name, lines in lines_of_tables(rows)}
    text = "\n\n".join(["\n".join(notes), *_markdown_tables(rows)]) + "\n"
    write_atomic(folder / "tables.md", lambda path: path.write_text(text, encoding="utf-8"))
    return [*(write_csv(file, table) for file, table in tables.items()), folder / "tables.md"]


def lines_of_tables(rows: Sequence[Row]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Each table that has rows: its name and its lines, which have the condition and all metrics with their ends."""
    for table in TABLES:
        lines: dict[tuple[Any, ...], dict[str, Any]] = {}
        for row in (each for each in rows if each["table"] == table):
            condition = {name: row.get(name) for name in CONDITION if name != "table"}
            line = lines.setdefault(tuple(condition.values()), {**condition, "num_cases": row["num_cases"]})
            line[row["metric"]] = row["value"]
            if row["low"] is not None:
                line |= {f"{row['metric']}_low": row["low"], f"{row['metric']}_high": row["high"]}
        empty = [name for name in CONDITION if all(line.get(name) is None for line in lines.values())]
        if lines:
            yield table, [{name: line[name] for name in line if name not in empty} for line in lines.values()]


def _markdown_tables(rows: Sequence[Row]) -> Iterator[str]:
    for table, lines in lines_of_tables(rows):
        yield f"**{TABLES[table]}**"
        groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}  # by metrics, so that no table is full of empty cells
        for line in lines:
            groups.setdefault(tuple(_shown(line)), []).append(line)
        for columns, group in groups.items():
            shown = [name for name in columns if any(line[name] is not None for line in group)]
            head = [f"{name}{_ARROWS.get(name, '')}" for name in shown]
            body = [[_cell(line, name) for name in shown] for line in group]
            cells = [head, ["---"] * len(shown), *body]
            yield "\n".join("| " + " | ".join(row) + " |" for row in cells)


def _shown(line: Iterable[str]) -> list[str]:
    """The columns of a line without the ends of intervals, which stand beside their values."""
    return [name for name in line if not name.endswith(("_low", "_high"))]


def _cell(line: dict[str, Any], name: str) -> str:
    ends = f" ({short(line[f'{name}_low'])} to {short(line[f'{name}_high'])})" if f"{name}_low" in line else ""
    return "" if line[name] is None else f"{short(line[name])}{ends}"


def short(value: Any) -> str:
    """A number with three digits that matter; whole numbers and text as they are."""
    if not isinstance(value, float):
        return str(value)
    if value == 0 or 0.01 <= abs(value) < 1:
        return f"{value:.3f}"
    return f"{value:.2e}" if abs(value) < 0.01 or abs(value) >= 1e5 else f"{value:#.3g}".removesuffix(".")


def result_lines(rows: Sequence[Row]) -> Iterator[str]:
    """Each table with its title, without intervals, which are in the files."""
    for name, lines in lines_of_tables(rows):
        columns = _shown(dict.fromkeys(column for line in lines for column in line))
        table = Table(*columns, box=None)
        for line in lines:
            table.add_row(*("" if line.get(column) is None else short(line[column]) for column in columns))
        yield from (TABLES[name], *table_lines(table), "")


# -- the rows on disk: an interrupted run resumes, and processes share the work ----------------------------------------


class MeasuredRows:
    """Rows by what they were made from, and by ``settings`` of all; ``advance`` moves a bar by one evaluation."""

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        process: Process,
        advance: Callable[[], None],
        overwrite: bool,
        patience_s: float = 60.0,  # at least; a batch of another process takes about as long as one of this process
    ) -> None:
        self._settings, self._process, self._advance, self._patience_s = settings, process, advance, patience_s
        self._store = PartStore(folder, "evaluate", process=process.rank)
        if overwrite and process.rank == 0:
            self._store.remove()
        self._done = self._read()
        self._num_shared, self._longest_s = 0, 0.0

    def rows(
        self, made_from: Mapping[str, Any], make: Callable[[], list[Row]], num_evaluations: int, *, shared: bool = False
    ) -> list[Row]:
        """The rows made from these things, measured now unless they are on disk.

        Shared rows are measured by one of the processes, which all call this in the same order. The first one waits for
        those of the others, and measures them itself if they do not come; the others get no rows but their own.
        """
        key = json_digest([dict(self._settings), dict(made_from)])
        if shared:
            rank, self._num_shared = self._num_shared % self._process.world_size, self._num_shared + 1
            if rank != self._process.rank:
                if self._process.rank:
                    return []
                self._wait(key, rank)
        if key not in self._done:
            start = time.monotonic()
            self._done[key] = make()
            self._longest_s = max(self._longest_s, time.monotonic() - start)
            self._store.append(pd.DataFrame({"id": [key], "rows": [json.dumps(self._done[key])]}))
        for _ in range(num_evaluations):
            self._advance()
        return self._done[key]

    def remove(self) -> None:
        """Delete the parts."""
        self._store.remove()

    def _wait(self, key: str, rank: int) -> None:
        patience_s, start = max(self._patience_s, _PATIENCE_BATCHES * self._longest_s), time.monotonic()
        while key not in self._done:
            if key in self._store.done():
                self._done = self._read()
            elif time.monotonic() - start > patience_s:
                logger.warning("rank %d has not measured its batch; this process measures it", rank)
                return
            else:
                time.sleep(_POLL_S)

    def _read(self) -> dict[str, list[Row]]:
        table = self._store.read()
        pairs = () if table.empty else zip(table["id"], table["rows"], strict=True)
        return {key: json.loads(rows) for key, rows in pairs}
