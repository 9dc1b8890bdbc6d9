"""Calibration and few-label curves of probes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monai_diffae.latents.probing.evaluation import FEW, Judged
from monai_diffae.latents.probing.nested import HeldOut

_MOST_BINS, _LEAST_IN_BIN = 10, 10


_MOST_COLUMNS = 4


_DPI = 120


HEADINGS = {
    "auroc": "AUROC", "auprc": "AUPRC", "balanced_accuracy": "balanced accuracy", "brier": "Brier", "r2": "R2",
    "mae": "MAE",
}  # fmt: skip


def _by_target(results: Sequence[Judged]) -> dict[str, list[Judged]]:
    found: dict[str, list[Judged]] = {}
    for result in results:
        found.setdefault(result.row["target"], []).append(result)
    return found


def draw_calibration(results: Sequence[Judged], path: Path) -> None:
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


def draw_few(few: pd.DataFrame, path: Path) -> None:
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
        axes.set_ylabel(HEADINGS[group["metric"].iloc[0]])
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
