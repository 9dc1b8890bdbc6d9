"""Charts of associations and of what two models share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from monai_diffae.latents.association import inflation
from monai_diffae.pictures.charts import COLOURS, DPI

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STRONG = 50  # -log10 p; stronger associations are drawn there
_MANY = 40  # components; with more, they are not numbered one by one


def draw_associations(rows: pd.DataFrame, level: float = 0.05) -> Figure:
    """Draw the p-values of ``associations.csv`` over the components, and their quantiles beside those of chance."""
    from matplotlib.figure import Figure
    from scipy import stats

    figure = Figure(figsize=(11, 4), dpi=DPI, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[2, 1])
    known = rows.dropna(subset=["p"]).assign(log_p=lambda each: -np.log10(each["p"].clip(lower=10.0**-_STRONG)))
    variables = list(known.groupby("variable", sort=False))
    most = max((len(each) for _, each in variables), default=1)
    for place, (name, each) in enumerate(variables):
        colour, is_found = COLOURS[place % len(COLOURS)], each["q"] < level
        shift = (place - (len(variables) - 1) / 2) * 0.6 / len(variables)
        left.scatter(each["component"] + shift, each["log_p"], s=18, edgecolors=colour,
                     facecolors=np.where(is_found, colour, "none"))  # fmt: skip
        right.scatter(-np.log10((np.arange(len(each)) + 0.5) / len(each)), np.sort(each["log_p"])[::-1], s=12,
                      color=colour, label=f"{name} (λ {inflation(each['p']):.2f})")  # fmt: skip
    found = known.loc[known["q"] < level, "p"]
    line = -np.log10(max(found.max(), 10.0**-_STRONG) if len(found) else level / max(len(known), 1))
    label = f"false discovery rate {level:.0%}" if len(found) else f"{level:.0%} (Bonferroni)"
    left.axhline(line, color="0.3", linewidth=0.8, linestyle="--", label=label)
    left.legend(frameon=False, fontsize=8)
    ranks = np.arange(1, most + 1)
    grid = -np.log10((ranks - 0.5) / most)
    ends = [-np.log10(stats.beta.ppf(quantile, ranks, most + 1 - ranks)) for quantile in (0.025, 0.975)]
    right.fill_between(grid, *ends, color="0.9", zorder=0)
    right.axline((0, 0), slope=1, color="0.5", linewidth=0.8)
    for panel in (left, right):
        panel.set_ylim(bottom=0)
    if most <= _MANY:
        left.set_xticks(sorted(rows["component"].unique()))
        left.tick_params(axis="x", labelsize=7)
    y = f"-log10 p (at most {_STRONG})" if known["log_p"].max() >= _STRONG else "-log10 p"
    left.set(xlabel="component of z_sem (1: the largest variance)", ylabel=y)
    right.set(xlabel="expected -log10 p (band: 95 %)", ylabel=y)
    right.legend(frameon=False, fontsize=8)
    return figure


def draw_stability(explained: pd.DataFrame, canonical: pd.DataFrame, correlations: Any) -> Figure:
    """Draw the tables ``stability.csv`` and ``canonical.csv``, and the correlations ``[K, L]`` of the components."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), dpi=DPI, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for place, (name, each) in enumerate(explained.groupby("model", sort=False)):
        errors = [(each["r2"] - each["low"]).clip(lower=0), (each["high"] - each["r2"]).clip(lower=0)]
        left.errorbar(each["component"] + 0.2 * place, each["r2"], errors, fmt="o", markersize=3, linewidth=1,
                      color=COLOURS[place], label=f"{name} model")  # fmt: skip
    left.axhline(0.5, color="0.6", linestyle=":")
    left.set(xlabel="component", ylabel="variance that the other model explains\n(R2 of held-out patients)",
             ylim=(min(-0.05, explained["r2"].min() - 0.05), 1.05))  # fmt: skip
    left.legend(frameon=False, fontsize=8)
    image = middle.imshow(np.abs(correlations), vmin=0, vmax=1, cmap="magma", aspect="auto",
                          extent=(0.5, correlations.shape[1] + 0.5, correlations.shape[0] + 0.5, 0.5))  # fmt: skip
    for axis in (middle.xaxis, middle.yaxis, right.xaxis):
        axis.get_major_locator().set_params(integer=True)
    figure.colorbar(image, ax=middle, label="absolute correlation")
    middle.set(xlabel="component of the second model", ylabel="component of the first model")
    value, low, high = (canonical[name] for name in ("correlation", "low", "high"))
    right.fill_between(canonical["pair"], low, high, color=COLOURS[0], alpha=0.2, linewidth=0)
    right.plot(canonical["pair"], value, "o-", color=COLOURS[0], markersize=3)
    right.axhline(0, color="0.6", linestyle=":")
    right.set(xlabel="pair of canonical variates", ylabel="correlation in held-out patients", ylim=(None, 1.05))
    return figure
