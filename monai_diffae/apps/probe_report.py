"""What probes found: tables, pictures, and a table on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monai_diffae.apps.probe_judging import FEW, Judged
from monai_diffae.data.atomic import write_atomic
from monai_diffae.latents.nested import HeldOut

FILES = ("probes.csv", "predictions.parquet", "calibration.png", "few_labels.csv", "few_labels.png")

_MOST_BINS, _LEAST_IN_BIN = 10, 10
_MOST_COLUMNS = 4
_DPI = 120
_WIDTH = 140  # of tables that go to a file
_FEW_COLUMNS = (
    "target", "features", "probe", "metric", "num_patients", "num_draws", "median", "low_quartile", "high_quartile"
)  # fmt: skip
_HEADINGS = {
    "auroc": "AUROC", "auprc": "AUPRC", "balanced_accuracy": "balanced accuracy", "brier": "Brier", "r2": "R2",
    "mae": "MAE",
}  # fmt: skip


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
        lambda path: _draw_calibration(results, path),
        lambda path: few.to_csv(path, index=False, lineterminator="\n"),
        lambda path: _draw_few(few, path),
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
        main, *others = [name for name in _HEADINGS if name in chosen[0]]
        table = Table("features", "probe", box=box.SIMPLE_HEAD)
        for heading in [_HEADINGS[main], *(_HEADINGS[name] for name in others)]:
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


def _by_target(results: Sequence[Judged]) -> dict[str, list[Judged]]:
    found: dict[str, list[Judged]] = {}
    for result in results:
        found.setdefault(result.row["target"], []).append(result)
    return found


def _draw_calibration(results: Sequence[Judged], path: Path) -> None:
    """How often what is predicted is so, and below it how many predictions there are."""
    targets = _by_target(results)
    figure, panels = _panels(len(targets), 2)
    for (name, group), (curve, counts) in zip(targets.items(), panels, strict=True):
        is_class = group[0].held_out.target.classes is not None
        every = np.concatenate([_pairs(result.held_out)[0] for result in group])
        span = (0.0, 1.0) if is_class else (float(every.min()), float(every.max()))
        for result in group:
            predicted, truth = _pairs(result.held_out)
            x, y = _bins(predicted, truth, is_class)
            label = f"{result.row['features']}, {result.row['probe']}"
            curve.plot(x, y, marker="o", markersize=3, label=label)
            counts.hist(predicted, bins=20, histtype="step", range=span)
        curve.plot(span, span, color="grey", linewidth=0.8, zorder=0)
        curve.set_title(name)
        curve.set_ylabel("share that is so" if is_class else "mean value")
        curve.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        counts.set_xlabel("predicted probability" if is_class else "predicted value")
        counts.set_ylabel("predictions")
    figure.savefig(path, dpi=_DPI)


def _pairs(made: HeldOut) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """Predictions and what was so: of two classes those of the second, of more those of all."""
    if made.target.classes is None:
        return made.predicted, made.target.values
    is_class = np.eye(len(made.target.classes))[made.target.values]
    judged = slice(1, 2) if len(made.target.classes) == 2 else slice(None)
    return made.predicted[:, judged].ravel(), is_class[:, judged].ravel()


def _bins(predicted: NDArray[np.float64], truth: NDArray[Any], is_class: bool) -> tuple[NDArray[Any], NDArray[Any]]:
    """The mean prediction and truth in up to 10 bins of about as many cases."""
    from sklearn.calibration import calibration_curve

    num = int(np.clip(len(predicted) // _LEAST_IN_BIN, 2, _MOST_BINS))
    if is_class:
        share, mean = calibration_curve(truth, predicted, n_bins=num, strategy="quantile")
        return mean, share
    bins = np.nan_to_num(pd.qcut(predicted, num, labels=False, duplicates="drop"))  # NaN of all where all are equal
    means = pd.DataFrame({"predicted": predicted, "truth": truth}).groupby(bins).mean()
    return means["predicted"].to_numpy(), means["truth"].to_numpy()


def _draw_few(few: pd.DataFrame, path: Path) -> None:
    """Median and quartiles over the draws, against how many patients are labelled."""
    targets = dict(iter(few.groupby("target", sort=False)))
    figure, panels = _panels(max(1, len(targets)), 1)
    if not targets:
        panels[0][0].set_title(f"fewer than {min(FEW)} patients to label")
    for (name, group), (axes,) in zip(targets.items(), panels, strict=False):
        for (features, probe), rows in group.groupby(["features", "probe"], sort=False):
            (line,) = axes.plot(rows["num_patients"], rows["median"], marker="o", label=f"{features}, {probe}")
            axes.fill_between(
                rows["num_patients"], rows["low_quartile"], rows["high_quartile"], color=line.get_color(), alpha=0.15
            )
        axes.set_xscale("log")
        axes.set_xticks(sorted(group["num_patients"].unique()), sorted(group["num_patients"].unique()))
        axes.minorticks_off()
        axes.set_title(str(name))
        axes.set_xlabel("labelled patients")
        axes.set_ylabel(_HEADINGS[group["metric"].iloc[0]])
        axes.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path, dpi=_DPI)


def _panels(num: int, num_axes: int) -> tuple[Any, list[Sequence[Any]]]:
    """A picture of ``num`` panels, each of one axis, or of two of which the second is small."""
    from matplotlib.figure import Figure  # no pyplot: it holds on to figures and wants a display

    columns = min(num, _MOST_COLUMNS)
    rows = -(-num // columns)
    figure = Figure(figsize=(6.0 * columns, (3 + 1.3 * (num_axes - 1)) * rows), layout="constrained")
    ratios = {"height_ratios": [3.0, 1.0][:num_axes]}
    parts = figure.subfigures(rows, columns, squeeze=False).ravel()[:num]
    return figure, [part.subplots(num_axes, 1, squeeze=False, sharex=True, gridspec_kw=ratios)[:, 0] for part in parts]
