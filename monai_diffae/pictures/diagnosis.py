"""The picture of a diagnosis: how much the decoder uses z_sem, and how stable z_sem is."""

from __future__ import annotations

from pathlib import Path

import pandas as pd


def draw_diagnosis(levels: pd.DataFrame, stability: pd.DataFrame, path: Path) -> None:
    """Draw the losses by noise level, their ratios, and how far changes of the image move z_sem.

    Args:
        levels: the table ``noise_levels.csv``.
        stability: the table ``stability.csv``.
        path: the PNG.
    """
    from matplotlib.figure import Figure  # not pyplot, which keeps figures and needs a display

    figure = Figure(figsize=(13, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    names = {"own": "own z_sem", "mean": "mean z_sem of the others", "other": "another patient's z_sem"}
    for colour, (name, label) in zip(("C0", "C1", "C2"), names.items(), strict=True):
        left.plot(levels["timestep"], levels[f"loss_{name}"], "o-", color=colour, label=label, markersize=3)
    for colour, name in (("C1", "z_sem_usage_mean"), ("C2", "z_sem_usage")):
        middle.plot(levels["timestep"], levels[name], "o-", color=colour, markersize=3)
    left.set(xlabel="timestep (right: pure noise)", ylabel="denoising loss", yscale="log")
    left.legend(frameon=False)
    middle.axhline(1, color="0.6", linestyle=":")
    lowest, highest = middle.get_ylim()
    middle.set_ylim(min(lowest, 0.99), max(highest, 1.05))  # so that a ratio of 1 looks like 1
    middle.ticklabel_format(axis="y", useOffset=False)
    middle.set(xlabel="timestep (right: pure noise)", ylabel="loss / loss with own z_sem")
    places = range(len(stability))
    right.barh(places, stability["ratio"], color="C0", height=0.6)
    right.hlines(places, stability["ratio"], stability["ratio_90"], color="0.3", linewidth=1)
    right.set_yticks(places, [f"{row.change} ({row.rank_1:.0%})" for row in stability.itertuples()], fontsize=8)
    right.invert_yaxis()
    right.axvline(1, color="0.6", linestyle=":")
    xlabel = "z_sem moves (median; line: 90 %)\n1: as far as to another patient"
    right.set(xlabel=xlabel, title="change (rank-1)")
    figure.savefig(path, dpi=120, format="png")
