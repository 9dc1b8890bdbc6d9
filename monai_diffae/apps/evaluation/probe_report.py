"""What probes found: tables, pictures, and a table on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from monai_diffae.data.atomic import write_atomic
from monai_diffae.latents.probing.evaluation import Judged
from monai_diffae.pictures.probes import HEADINGS, draw_calibration, draw_few

FILES = ("probes.csv", "predictions.parquet", "calibration.png", "few_labels.csv", "few_labels.png")

_WIDTH = 140  # of tables that go to a file
_FEW_COLUMNS = (
    "target", "features", "probe", "metric", "num_patients", "num_draws", "median", "low_quartile", "high_quartile"
)  # fmt: skip


def write_report(folder: Path, table: pd.DataFrame, results: Sequence[Judged]) -> None:
    """Write :data:`FILES` into a folder.

    Args:
        folder: where to.
        table: of embeddings.
        results: the probes, judged.
    """
    few = pd.DataFrame([row for result in results for row in result.few], columns=list(_FEW_COLUMNS))
    predictions = pd.concat([_predictions(table, result) for result in results], ignore_index=True)
    scores = pd.DataFrame([result.row for result in results])
    writers: tuple[Callable[[Path], object], ...] = (
        lambda path: scores.to_csv(path, index=False, lineterminator="\n"),
        lambda path: predictions.to_parquet(path, index=False),
        lambda path: draw_calibration(results, path),
        lambda path: few.to_csv(path, index=False, lineterminator="\n"),
        lambda path: draw_few(few, path),
    )
    for name, write in zip(FILES, writers, strict=True):
        write_atomic(folder / name, write)


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the scores, a table a target."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False, markup=False)
    has_baseline = any(row["difference"] is not None for row in rows)
    for target in dict.fromkeys(row["target"] for row in rows):
        chosen = [row for row in rows if row["target"] == target]
        main, *others = [name for name in HEADINGS if name in chosen[0]]
        table = Table("features", "probe", box=box.SIMPLE_HEAD)
        for heading in [HEADINGS[main], *(HEADINGS[name] for name in others)]:
            table.add_column(heading, justify="right")
        if has_baseline:
            table.add_column("z_sem less this", justify="right")
        for row in chosen:
            cells = [_ranged(row, "score", "low", "high"), *(_number(row[name]) for name in others)]
            if has_baseline:
                cells.append(_ranged(row, "difference", "difference_low", "difference_high"))
            table.add_row(f"{row['features']} ({row['dims']})", row["probe"], *cells)
        console.print(_title(chosen[0]))
        console.print(table)
    console.print("in brackets: how many features there are, and 95% intervals over patients")


def _title(row: Mapping[str, Any]) -> str:
    how = f"{row['num_folds']}-fold nested cross-validation" if row["evaluation"] == "cv" else "the table's split"
    judged = f"{row['num_test']} cases of {row['num_patients']} patients"
    return f"{row['target']}: judged on {judged}, fitted to {row['num_train']} others, by {how}"


def _ranged(row: Mapping[str, Any], value: str, low: str, high: str) -> str:
    return "" if row[value] is None else f"{_number(row[value])} ({_number(row[low])}, {_number(row[high])})"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"


def _predictions(table: pd.DataFrame, result: Judged) -> pd.DataFrame:
    """A row a judged case: text of classes with their probabilities, or numbers."""
    made = result.held_out
    rows = table.iloc[made.target.rows]
    columns: dict[str, Any] = {name: rows[name].astype(str).to_numpy() for name in ("id", "patient") if name in rows}
    columns |= {name: result.row[name] for name in ("target", "features", "probe")} | {"fold": made.fold}
    if made.target.classes is None:
        columns |= {"true_value": made.target.values, "predicted_value": made.predicted}
    else:
        names = np.array(made.target.classes, object)
        columns |= {"truth": names[made.target.values], "predicted": names[made.classified]}
        columns |= {f"probability_{name}": made.predicted[:, code] for code, name in enumerate(names)}
    return pd.DataFrame(columns)
