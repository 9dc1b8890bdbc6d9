"""Calibration curves and few-label curves of probes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monai_diffae.latents.probing.evaluation import FEW_PATIENTS, EvaluatedProbe
from monai_diffae.latents.probing.nested import HeldOutPredictions

METRIC_NAMES = {
    "auroc": "AUROC", "auprc": "AUPRC", "balanced_accuracy": "balanced accuracy", "brier": "Brier", "r2": "R2",
    "mae": "MAE",
}  # fmt: skip

_MAX_BINS, _MIN_CASES_PER_BIN = 10, 10
_MAX_COLUMNS = 4
_DPI = 120


def draw_calibration(probes: Sequence[EvaluatedProbe], path: Path) -> None:
    """Draw calibration curves: one panel per target, with a histogram of the predictions below.

    Args:
        probes: the evaluated probes.
        path: the PNG.
    """
    targets: dict[str, list[EvaluatedProbe]] = {}
    for probe in probes:
        targets.setdefault(probe.row["target"], []).append(probe)
    figure, panels = _panels(len(targets), 2)
    for (name, group), (curve, histogram) in zip(targets.items(), panels, strict=True):
        curve.set_title(name)
        _draw_target(group, curve, histogram)
    figure.savefig(path, dpi=_DPI)


def _draw_target(probes: Sequence[EvaluatedProbe], curve: Any, histogram: Any) -> None:
    is_class = probes[0].predictions.target.classes is not None
    all_predictions = np.concatenate([_predictions_and_truth(probe.predictions)[0] for probe in probes])
    limits = (0.0, 1.0) if is_class else (float(all_predictions.min()), float(all_predictions.max()))
    for probe in probes:
        predicted, truth = _predictions_and_truth(probe.predictions)
        x, y = calibration_bins(predicted, truth, is_class)
        curve.plot(x, y, marker="o", markersize=3, label=f"{probe.row['features']}, {probe.row['probe']}")
        histogram.hist(predicted, bins=20, histtype="step", range=limits)
    curve.plot(limits, limits, color="grey", linewidth=0.8, zorder=0)
    curve.set_ylabel("observed frequency" if is_class else "observed mean")
    curve.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    histogram.set_xlabel("predicted probability" if is_class else "predicted value")
    histogram.set_ylabel("predictions")


def _predictions_and_truth(predictions: HeldOutPredictions) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """Predicted and true values: those of the second class if there are two classes, else those of all classes."""
    if predictions.target.classes is None:
        return predictions.predicted, predictions.target.values
    is_class = np.eye(len(predictions.target.classes))[predictions.target.values]
    drawn = slice(1, 2) if len(predictions.target.classes) == 2 else slice(None)
    return predictions.predicted[:, drawn].ravel(), is_class[:, drawn].ravel()


def calibration_bins(
    predicted: NDArray[np.float64], truth: NDArray[Any], is_class: bool
) -> tuple[NDArray[Any], NDArray[Any]]:
    """The mean prediction and the mean truth in up to 10 bins with about the same number of cases.

    Args:
        predicted: probabilities, or predicted values, ``[N]``.
        truth: whether each case is of the class, or true values, ``[N]``.
        is_class: whether these are probabilities of a class.
    """
    from sklearn.calibration import calibration_curve

    num = int(np.clip(len(predicted) // _MIN_CASES_PER_BIN, 2, _MAX_BINS))
    if is_class:
        frequency, mean = calibration_curve(truth, predicted, n_bins=num, strategy="quantile")
        return mean, frequency
    bins = np.nan_to_num(pd.qcut(predicted, num, labels=False, duplicates="drop"))  # all NaN if all values are equal
    means = pd.DataFrame({"predicted": predicted, "truth": truth}).groupby(bins).mean()
    return means["predicted"].to_numpy(), means["truth"].to_numpy()


def draw_few_labels(few_labels: pd.DataFrame, path: Path) -> None:
    """Draw scores over the number of labelled patients: median and quartiles of the draws, one panel per target.

    Args:
        few_labels: the table ``few_labels.csv``.
        path: the PNG.
    """
    targets = dict(iter(few_labels.groupby("target", sort=False)))
    figure, panels = _panels(max(1, len(targets)), 1)
    if not targets:
        panels[0][0].set_title(f"fewer than {2 * min(FEW_PATIENTS)} labelled patients to fit to")
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
        axes.set_xlabel("labelled patients (shaded: quartiles of the draws, no confidence interval)")
        axes.set_ylabel(METRIC_NAMES[group["metric"].iloc[0]])
        axes.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path, dpi=_DPI)


def _panels(num: int, num_axes: int) -> tuple[Any, list[Sequence[Any]]]:
    """A figure with ``num`` panels, each with one axis, or with two axes, the second of which is small."""
    from matplotlib.figure import Figure  # not pyplot, which keeps figures and needs a display

    columns = min(num, _MAX_COLUMNS)
    rows = -(-num // columns)
    figure = Figure(figsize=(6.0 * columns, (3 + 1.3 * (num_axes - 1)) * rows), layout="constrained")
    ratios = {"height_ratios": [3.0, 1.0][:num_axes]}
    parts = figure.subfigures(rows, columns, squeeze=False).ravel()[:num]
    return figure, [part.subplots(num_axes, 1, squeeze=False, sharex=True, gridspec_kw=ratios)[:, 0] for part in parts]
