"""The files of an evaluation: tables as CSV and Markdown, the cases, and everything as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from monai_diffae.apps.evaluation.quality.journal import Row
from monai_diffae.apps.evaluation.quality.summary import CONDITION
from monai_diffae.data.atomic import write_atomic

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
    """Write ``tables/<table>.csv``, one line per condition, for each table that has rows.

    Returns:
        The files.
    """
    files = []
    for table in TABLES:
        lines = wide_lines(rows, table)
        if lines:
            files.append(_write_csv(folder / "tables" / f"{table}.csv", lines))
    return files


def write_cases(file: Path, case_rows: Sequence[Row]) -> None:
    """Write one row per case, table and condition."""
    _write_csv(file, case_rows)


def _write_csv(file: Path, rows: Sequence[Row]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(rows)
    return write_atomic(file, lambda path: frame.to_csv(path, index=False, lineterminator="\n"))


def write_markdown(file: Path, rows: Sequence[Row], notes: Sequence[str]) -> None:
    """Write all tables in Markdown, ready for a paper, below notes on how they were measured."""
    text = "\n\n".join(["\n".join(notes), *_markdown_tables(rows)]) + "\n"
    write_atomic(file, lambda path: path.write_text(text, encoding="utf-8"))


def wide_lines(rows: Iterable[Row], table: str) -> list[dict[str, Any]]:
    """The lines of a table: the condition, then ``<metric>``, ``<metric>_low`` and ``<metric>_high`` of each metric.

    Fields of the condition that no line has are left out.

    Example:
        >>> row = {"table": "z_sem", "bundle": "b", "metric": "active", "value": 3.0, "low": None, "high": None}
        >>> wide_lines([{**row, "num_cases": 8}], "z_sem")
        [{'bundle': 'b', 'num_cases': 8, 'active': 3.0}]
    """
    lines: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        if row["table"] != table:
            continue
        condition = tuple(row.get(name) for name in CONDITION if name != "table")
        line = lines.setdefault(condition, {**_condition_fields(row), "num_cases": row["num_cases"]})
        line[row["metric"]] = row["value"]
        if row["low"] is not None:
            line |= {f"{row['metric']}_low": row["low"], f"{row['metric']}_high": row["high"]}
    fields = [name for name in CONDITION if any(line.get(name) is not None for line in lines.values())]
    return [
        {**{name: line[name] for name in fields}, **{k: v for k, v in line.items() if k not in CONDITION}}
        for line in lines.values()
    ]


def _condition_fields(row: Row) -> dict[str, Any]:
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
    """A number with three digits that matter; whole numbers and text as they are.

    Example:
        >>> short(0.98765), short(0.000123), short(31.4159), short(64), short("adams")
        ('0.988', '1.23e-04', '31.4', '64', 'adams')
    """
    if not isinstance(value, float):
        return str(value)
    if value == 0 or 0.01 <= abs(value) < 1:
        return f"{value:.3f}"
    return f"{value:.2e}" if abs(value) < 0.01 or abs(value) >= 1e5 else f"{value:#.3g}".removesuffix(".")
