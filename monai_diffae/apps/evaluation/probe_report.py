"""The report of probes: tables and pictures in a folder, and tables for the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from monai_diffae.data.atomic import write_atomic
from monai_diffae.errors import counted
from monai_diffae.latents.probing.evaluation import EvaluatedProbe
from monai_diffae.pictures.charts import METRIC_NAMES, draw_calibration, draw_few_labels

FILES = ("probes.csv", "predictions.parquet", "calibration.png", "few_labels.csv", "few_labels.png")

_WIDTH = 140  # columns of text, for tables that are written to a file
_FEW_LABEL_COLUMNS = (
    "target", "features", "probe", "metric", "num_patients", "num_draws", "median", "low_quartile", "high_quartile"
)  # fmt: skip


def write_report(folder: Path, table: pd.DataFrame, probes: Sequence[EvaluatedProbe]) -> None:
    """Write :data:`FILES` into a folder.

    Args:
        folder: the folder.
        table: the table of embeddings.
        probes: the evaluated probes.
    """
    few_labels = pd.DataFrame([row for probe in probes for row in probe.few_labels], columns=list(_FEW_LABEL_COLUMNS))
    predictions = pd.concat([_predictions(table, probe) for probe in probes], ignore_index=True)
    scores = pd.DataFrame([probe.row for probe in probes])
    writers: tuple[Callable[[Path], object], ...] = (
        lambda path: scores.to_csv(path, index=False, lineterminator="\n"),
        lambda path: predictions.to_parquet(path, index=False),
        lambda path: draw_calibration(probes, path),
        lambda path: few_labels.to_csv(path, index=False, lineterminator="\n"),
        lambda path: draw_few_labels(few_labels, path),
    )
    for name, write in zip(FILES, writers, strict=True):
        write_atomic(folder / name, write)


def score_tables(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines of one table of scores per target.

    Args:
        rows: the scores, as in :class:`~monai_diffae.apps.evaluation.probe.ProbeResult`.
    """
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False, markup=False)
    has_baseline = any(row["difference"] is not None for row in rows)
    with console.capture() as capture:
        for target in dict.fromkeys(row["target"] for row in rows):
            rows_of_target = [row for row in rows if row["target"] == target]
            console.print(_title(rows_of_target[0]))
            console.print(_table(rows_of_target, has_baseline))
        console.print("in brackets: number of features, and 95% intervals over patients")
    yield from capture.get().splitlines()


def _title(row: Mapping[str, Any]) -> str:
    method = f"{row['num_folds']}-fold nested cross-validation" if row["evaluation"] == "cv" else "the table's split"
    return (
        f"{row['target']} ({row['kind']}): evaluated on {counted(row['num_test'], 'case')} of "
        f"{counted(row['num_patients'], 'patient')}, "
        f"fitted to {row['num_train']} others, by {method}"
    )


def _table(rows: Sequence[Mapping[str, Any]], has_baseline: bool) -> Any:
    from rich import box
    from rich.table import Table

    main, *others = [name for name in METRIC_NAMES if name in rows[0]]
    table = Table("features", "probe", box=box.SIMPLE_HEAD)
    for name in [main, *others]:
        table.add_column(METRIC_NAMES[name], justify="right")
    if has_baseline:
        table.add_column(f"{rows[0]['features']} minus this", justify="right")
    for row in rows:
        cells = [_with_interval(row, "score", "low", "high"), *(_number(row[name]) for name in others)]
        if has_baseline:
            cells.append(_with_interval(row, "difference", "difference_low", "difference_high"))
        table.add_row(f"{row['features']} ({row['dims']})", row["probe"], *cells)
    return table


def _with_interval(row: Mapping[str, Any], value: str, low: str, high: str) -> str:
    return "" if row[value] is None else f"{_number(row[value])} ({_number(row[low])}, {_number(row[high])})"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"


def _predictions(table: pd.DataFrame, probe: EvaluatedProbe) -> pd.DataFrame:
    """One row per test case: its class as text with the probabilities of all classes, or numbers."""
    predictions = probe.predictions
    target = predictions.target
    rows = table.iloc[target.rows]
    columns: dict[str, Any] = {name: rows[name].astype(str).to_numpy() for name in ("id", "patient") if name in rows}
    columns |= {name: probe.row[name] for name in ("target", "features", "probe")} | {"fold": predictions.fold}
    if target.classes is None or predictions.ranking is None:
        columns |= {"true_value": target.values, "predicted_value": predictions.predicted}
        columns |= {} if predictions.baseline is None else {"training_mean": predictions.baseline}
    else:
        names = np.array(target.classes, object)
        columns |= {"truth": names[target.values], "predicted": names[predictions.predicted_class]}
        columns |= {f"probability_{name}": predictions.predicted[:, code] for code, name in enumerate(names)}
        columns |= {f"ranking_{name}": values for name, values in zip(names, predictions.ranking.T, strict=True)}
    return pd.DataFrame(columns)
