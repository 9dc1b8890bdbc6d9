"""Training curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

_BESIDE_LOSSES = {
    "validation_kl": "KL divergence of the latents\n(nats per value)",
    "validation_copying_ratio": "copying ratio\n(distance of samples to training cases / of held-out cases)",
    "validation_z_sem_usage": "z_sem_usage\n(loss with another image's z_sem / own)",
}


_PROBE = "validation_probe_"
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#F0E442")  # Okabe and Ito


def draw_curves(frame: pd.DataFrame, path: str | Path) -> None:
    """Draw the losses over the images seen, and beside them the metric that matters for this kind of model, as a PNG.

    A third panel has the probes, if there are any.

    Args:
        frame: the table that :class:`~monai_diffae.handlers.TrainingCurves` writes.
        path: the file.
    """
    from matplotlib.figure import Figure  # not pyplot, which keeps figures in memory and needs a display
    from matplotlib.ticker import EngFormatter

    probed = [name.removeprefix(_PROBE) for name in map(str, frame.columns) if name.startswith(_PROBE)]
    figure = Figure(figsize=(13 if probed else 9, 3.4), layout="constrained")
    left, right, *others = figure.subplots(1, 3 if probed else 2)
    metric, label = next((m, text) for m, text in _BESIDE_LOSSES.items() if m in frame or m == "validation_z_sem_usage")
    training = frame.dropna(subset=["loss"]) if "loss" in frame else frame.iloc[:0]
    if len(training):
        window = max(1, len(training) // 50)
        left.plot(training["images_seen"], training["loss"], color="0.8", linewidth=0.8)
        smooth = training["loss"].rolling(window, min_periods=1).mean()
        left.plot(training["images_seen"], smooth, color="C0", label="training")
    if "validation_loss" in frame:
        validation = frame.dropna(subset=["validation_loss"])
        left.plot(
            validation["images_seen"], validation["validation_loss"], "o-", color="C1", label="validation", markersize=3
        )
        if metric in validation:
            right.plot(validation["images_seen"], validation[metric], "o-", color="C2", markersize=3)
    for panel in others:
        _draw_probes(panel, frame, probed)
    for panel in (left, right, *others):
        panel.ticklabel_format(axis="y", useOffset=False)
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))  # 20k, 1M: longer numbers would overlap
    left.set(xlabel="images seen", ylabel="loss", yscale="log")
    left.legend(frameon=False)
    right.axhline(1, color="0.6", linestyle=":")
    right.set(xlabel="images seen", ylabel=label)
    figure.savefig(path, dpi=120, format="png")


def _draw_probes(panel: Any, frame: pd.DataFrame, labels: Sequence[str]) -> None:
    """Draw the probe of each label, with its interval."""
    for number, label in enumerate(labels):
        colour, name = _COLOURS[number % len(_COLOURS)], f"{_PROBE}{label}"
        rows = frame.dropna(subset=[name])
        ends = [f"validation_{end}_of_probe_{label}" for end in ("low", "high")]
        panel.plot(rows["images_seen"], rows[name], "o-", color=colour, markersize=3, label=label)
        if set(ends) <= set(frame.columns):
            panel.fill_between(rows["images_seen"], *(rows[end] for end in ends), color=colour, alpha=0.1, linewidth=0)
    panel.set(xlabel="images seen", ylabel="probes of z_sem\n(AUROC of classes, R2 of numbers)", ylim=(-0.1, 1.02))
    panel.axhline(0.5, color="0.6", linestyle=":")
    panel.legend(frameon=False, fontsize="small", ncols=2)
