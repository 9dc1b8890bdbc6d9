"""An overview of a cohort: sizes, spacings, intensities, problems and small versions of some scans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from monai_diffae.pictures.charts import COLOURS, figure_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS, _NUM_BINS = 3, 40
_MOST_KINDS, _LONGEST_KIND = 10, 44
_WIDE_RANGE = 100.0  # ratio of the highest values of scans to their median, from which the axis is logarithmic


@dataclass(frozen=True, eq=False)
class CohortOverview:
    """What the picture shows; no ids, so that it can be shown to others.

    Attributes:
        axes: the names of the D axes.
        geometry: a title and an array (N, D) for each of size, spacing and field of view.
        intensities: (N, 5) percentiles 0, 1, 50, 99 and 100 of each scan; empty: they were not read.
        problems: kinds of problems, whether they are failures, and the number of their cases.
        thumbnails: small scans (H, W) from 0 to 1.
    """

    axes: Sequence[str]
    geometry: Sequence[tuple[str, NDArray[Any]]]
    intensities: NDArray[np.float64]
    problems: Sequence[tuple[str, bool, int]]
    thumbnails: Sequence[NDArray[np.float32]]


def draw_cohort_overview(overview: CohortOverview) -> Figure:
    """Draw the overview."""
    has_voxels = len(overview.intensities) > 0
    num_rows = 2 if len(overview.geometry) or has_voxels else 1
    figure = figure_of(4.2 * _COLUMNS, 3.6 * num_rows)
    panels = iter(figure.subplots(num_rows, _COLUMNS, squeeze=False).ravel())
    for title, values in overview.geometry:
        _draw_histogram(next(panels), title, values, overview.axes)
    _draw_problems(next(panels), overview.problems)
    if has_voxels:
        _draw_intensities(next(panels), overview.intensities)
        _draw_thumbnails(next(panels), overview.thumbnails)
    for panel in panels:
        panel.axis("off")
    return figure


def _draw_histogram(panel: Any, title: str, values: NDArray[Any], axes: Sequence[str]) -> None:
    bins = _bins(values)
    for axis, (name, colour) in enumerate(zip(axes, COLOURS, strict=False)):
        panel.hist(values[:, axis], bins, label=name, color=colour, histtype="stepfilled", alpha=0.35)
        panel.hist(values[:, axis], bins, color=colour, histtype="step")
    panel.set(title=title, ylabel="scans")
    panel.legend(frameon=False)


def _bins(values: NDArray[Any]) -> NDArray[np.float64]:
    """The edges of bins. For whole numbers, all bins hold equally many of them, so that none stays empty."""
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind in "iu":
        width = max(1, int(np.ceil((high - low) / _NUM_BINS)))
        return np.arange(low - 0.5, high + width + 0.5, width)
    margin = max(0.02 * (high - low), 0.02 * high)
    return np.linspace(low - margin, high + margin, _NUM_BINS)


def _draw_problems(panel: Any, problems: Sequence[tuple[str, bool, int]]) -> None:
    panel.set(title="problems")
    if not problems:
        panel.text(0.5, 0.5, "none", ha="center", va="center", transform=panel.transAxes)
        panel.axis("off")
        return
    shown = problems[:_MOST_KINDS]
    places = range(len(shown))
    colours = [COLOURS[1] if failed else COLOURS[0] for _, failed, _ in shown]
    bars = panel.barh(places, [count for *_, count in shown], height=0.5, color=colours)
    panel.bar_label(bars, padding=2)
    # above the bars, because beside them long names would leave no room
    for place, (kind, failed, _) in enumerate(shown):
        text = kind if len(kind) <= _LONGEST_KIND else f"{kind[: _LONGEST_KIND - 3]}..."
        label = f"{'failed' if failed else 'doubtful'}: {text}"
        panel.text(0, place - 0.29, label, fontsize=8, va="bottom", parse_math=False)
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.set(yticks=[], xlabel="scans", ylim=(len(shown) - 0.4, -0.9))
    panel.margins(x=0.12)


def _draw_intensities(panel: Any, percentiles: NDArray[np.float64]) -> None:
    lowest, low, median, high, highest = percentiles[np.argsort(percentiles[:, 2], kind="stable")].T
    ranks = np.arange(len(median))
    panel.fill_between(ranks, lowest, highest, color="0.9", label="minimum to maximum", step="mid")
    panel.fill_between(ranks, low, high, color=COLOURS[0], alpha=0.35, label="1st to 99th percentile", step="mid")
    panel.plot(ranks, median, color=COLOURS[1], label="median", drawstyle="steps-mid")
    if highest.max() > _WIDE_RANGE * max(abs(float(np.median(highest))), 1e-9):
        panel.set_yscale("symlog")
    panel.set(title="intensities", xlabel="scans, by their median", ylabel="value")
    panel.legend(frameon=False, fontsize=8)


def _draw_thumbnails(panel: Any, thumbnails: Sequence[NDArray[np.float32]]) -> None:
    side = max(int(np.sqrt(len(thumbnails))), 1)
    rows = [np.hstack(thumbnails[k * side : (k + 1) * side]) for k in range(side) if thumbnails]
    if rows:
        panel.imshow(np.vstack(rows), cmap="gray", vmin=0, vmax=1)
    panel.set(title="some of the scans")
    panel.axis("off")
