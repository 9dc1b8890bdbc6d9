"""Charts by matplotlib: cohorts, trainings, diagnoses, probes, and what commands about a table of z_sem find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure  # not pyplot, which keeps figures and needs a display
from numpy.typing import NDArray

from monai_diffae.errors import shortened
from monai_diffae.latents.directions import LabelChange
from monai_diffae.latents.statistics import Floats

METRIC_NAMES = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "balanced_accuracy": "balanced accuracy",
    "brier": "Brier",
    "r2": "R2",
    "mae": "MAE",
}

_MAX_BINS, _MIN_CASES_PER_BIN = 10, 10
_MAX_COLUMNS = 4
_COLUMNS, _NUM_BINS = 3, 40
_MOST_KINDS, _LONGEST_KIND = 10, 44
_WIDE_RANGE = 100.0  # ratio of the highest values of scans to their median, from which the axis is logarithmic
_STRONG = 50  # -log10 p; stronger associations are drawn there
_MANY = 40  # components; with more, they are not numbered one by one
DPI = 120
_BESIDE_LOSSES = {
    "validation_kl": "KL divergence of the latents\n(nats per value)",
    "validation_copying_ratio": "copying ratio\n(distance of samples to training cases / of held-out cases)",
    "validation_z_sem_usage": "z_sem_usage\n(loss with another image's z_sem / own)",
}
_PROBE = "validation_probe_"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#F0E442")  # Okabe and Ito


def figure_of(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def draw_curves(frame: pd.DataFrame) -> Figure:
    """Draw the losses of a training over the images seen, the metric that matters for its kind of model, and probes."""
    from matplotlib.ticker import EngFormatter

    probed = [name.removeprefix(_PROBE) for name in map(str, frame.columns) if name.startswith(_PROBE)]
    figure = figure_of(13 if probed else 9, 3.4)
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
    return figure


def _draw_probes(panel: Any, frame: pd.DataFrame, labels: Sequence[str]) -> None:
    """Draw the probe of each label, with its interval."""
    for number, label in enumerate(labels):
        colour, name = COLOURS[number % len(COLOURS)], f"{_PROBE}{label}"
        rows = frame.dropna(subset=[name])
        ends = [f"validation_{end}_of_probe_{label}" for end in ("low", "high")]
        panel.plot(rows["images_seen"], rows[name], "o-", color=colour, markersize=3, label=label)
        if set(ends) <= set(frame.columns):
            panel.fill_between(rows["images_seen"], *(rows[end] for end in ends), color=colour, alpha=0.1, linewidth=0)
    panel.set(xlabel="images seen", ylabel="probes of z_sem\n(AUROC of classes, R2 of numbers)", ylim=(-0.1, 1.02))
    panel.axhline(0.5, color="0.6", linestyle=":")
    panel.legend(frameon=False, fontsize="small", ncols=2)


def draw_diagnosis(levels: pd.DataFrame, stability: pd.DataFrame) -> Figure:
    """Draw ``noise_levels.csv``, the losses and their ratios, and ``stability.csv``, how far changes move z_sem."""
    figure = figure_of(13, 4)
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
    return figure


def draw_calibration(predictions: pd.DataFrame) -> Figure:
    """Draw ``predictions.parquet``: one panel per target, with a histogram of the predictions below."""
    targets = dict(iter(predictions.groupby("target", sort=False)))
    figure, panels = _panels(len(targets), 2)
    for (name, group), (curve, histogram) in zip(targets.items(), panels, strict=True):
        curve.set_title(str(name))
        _draw_target(group, curve, histogram)
    return figure


def _draw_target(predictions: pd.DataFrame, curve: Any, histogram: Any) -> None:
    lines = {
        f"{features}, {probe}": predictions_and_truth(rows)
        for (features, probe), rows in predictions.groupby(["features", "probe"], sort=False)
    }
    every = np.concatenate([predicted for predicted, *_ in lines.values()])
    is_class = next(iter(lines.values()))[2]
    limits = (0.0, 1.0) if is_class else (float(every.min()), float(every.max()))
    for label, (predicted, truth, _) in lines.items():
        x, y = calibration_bins(predicted, truth, is_class)
        curve.plot(x, y, marker="o", markersize=3, label=label)
        histogram.hist(predicted, bins=20, histtype="step", range=limits)
    curve.plot(limits, limits, color="grey", linewidth=0.8, zorder=0)
    curve.set_ylabel("observed frequency" if is_class else "observed mean")
    _legend_beside(curve)
    histogram.set_xlabel("predicted probability" if is_class else "predicted value")
    histogram.set_ylabel("predictions")


def predictions_and_truth(rows: pd.DataFrame) -> tuple[Floats, NDArray[Any], bool]:
    """Rows of ``predictions.parquet`` about a target: predicted and true values, and whether these are of classes.

    They are those of the second class if there are two classes, else those of all classes.
    """
    if "truth" not in rows or rows["truth"].isna().all():
        return rows["predicted_value"].to_numpy(float), rows["true_value"].to_numpy(float), False
    names = [str(name)[len("probability_") :] for name in rows.filter(regex="^probability_").dropna(axis=1)]
    are_numbers = pd.to_numeric(pd.Series(names), errors="coerce").notna().all()  # columns are in any target's order
    shown = sorted(names, key=float if are_numbers else str)[len(names) == 2 :]
    truth = np.stack([rows["truth"].astype(str) == name for name in shown])
    return rows[[f"probability_{name}" for name in shown]].to_numpy(float).T.ravel(), truth.ravel(), True


def calibration_bins(predicted: Floats, truth: NDArray[Any], is_class: bool) -> tuple[NDArray[Any], NDArray[Any]]:
    """The mean prediction and the mean truth, of ``[N]`` each, in up to 10 bins with about as many cases.

    For a class, predictions are its probabilities.
    """
    from sklearn.calibration import calibration_curve

    num = int(np.clip(len(predicted) // _MIN_CASES_PER_BIN, 2, _MAX_BINS))
    if is_class:
        frequency, mean = calibration_curve(truth, predicted, n_bins=num, strategy="quantile")
        return mean, frequency
    bins = np.nan_to_num(pd.qcut(predicted, num, labels=False, duplicates="drop"))  # all NaN if all values are equal
    means = pd.DataFrame({"predicted": predicted, "truth": truth}).groupby(bins).mean()
    return means["predicted"].to_numpy(), means["truth"].to_numpy()


def draw_few_labels(few_labels: pd.DataFrame) -> Figure:
    """Draw ``few_labels.csv``, scores over the number of labelled patients: median and quartiles of the draws."""
    from monai_diffae.latents.probing.evaluation import FEW_PATIENTS

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
        _legend_beside(axes)
    return figure


def draw_explanation(curves: pd.DataFrame, cases: pd.DataFrame, labels: Sequence[LabelChange]) -> Figure:
    """Draw the scores along the changes of all cases, and beside them how often each label changes.

    Args:
        curves: ``id``, ``distance``, ``score``.
        cases: ``id``, ``to``, ``distance``, ``counterfactual``, ``reached`` of the same cases.
        labels: the changes of labels; the first one is drawn on top.
    """
    figure = figure_of(9 if labels else 4.5, max(3.2, 0.9 + 0.3 * len(labels)))
    left, *others = figure.subplots(1, 2 if labels else 1, squeeze=False)[0]
    for _, curve in curves.groupby("id", sort=False):
        left.plot(curve["distance"], curve["score"], color="0.7", linewidth=0.8)
    for is_reached, colour, text in ((True, COLOURS[0], "counterfactual"), (False, COLOURS[1], "not reached")):
        chosen = cases[cases["reached"] == is_reached]
        if len(chosen):
            left.plot(chosen["distance"], chosen["counterfactual"], ".", color=colour, label=text)
    for target in sorted(set(cases["to"])):
        left.axhline(target, color="black", linewidth=0.6, linestyle=":")
    left.set_xlabel("length of the change\n(standard deviations of training cases)")
    left.set_ylabel("score")
    left.legend(fontsize=7)
    for right in others:
        for row, each in enumerate(labels):
            right.plot([each.low, each.high], [row, row], color=COLOURS[0], linewidth=1.5)
            right.plot(each.share, row, "o", color=COLOURS[0], label=None if row else "counterfactuals")
            right.plot(each.random_share, row, "|", color=COLOURS[1], label=None if row else "random, same length")
        right.set_yticks(range(len(labels)), [each.label for each in labels])
        right.set(xlim=(-0.03, 1.03), ylim=(len(labels) - 0.5, -0.5))
        right.set_xlabel("share of cases in which the label changes")
        right.legend(fontsize=7)
    return figure


def draw_regularisations(scores: pd.DataFrame) -> Figure:
    """Draw the table ``regularisation.csv``, with dots where a value was chosen, one panel per target."""
    targets = dict(iter(scores.groupby("target", sort=False)))
    figure, panels = _panels(len(targets), 1)
    for (name, group), (axes,) in zip(targets.items(), panels, strict=True):
        for features, rows in group.groupby("features", sort=False):
            (line,) = axes.plot(rows["regularisation"], rows["score"], label=str(features))
            chosen = rows[rows["num_folds_chosen"] > 0]
            axes.plot(chosen["regularisation"], chosen["score"], "o", color=line.get_color())
        axes.set_xscale("log")
        metric = group["metric"].iloc[0]
        if metric == "r2":
            axes.invert_xaxis()  # so that strong is left in all panels
        label = f"{'alpha' if metric == 'r2' else 'C'} (left: strong; dots: chosen without the test cases)"
        axes.set(title=str(name), xlabel=label, ylabel=METRIC_NAMES[metric])
        _legend_beside(axes)
    return figure


def draw_reliability(measured: pd.DataFrame) -> Figure:
    """Draw the table ``reliability.csv``: the ICCs, and the shares of variance of each dimension and component."""
    figure = figure_of(13, 3.6)
    left, *others = figure.subplots(1, 3, width_ratios=[1, 1.4, 1.4])
    shares = [name for name in ("patient_share", "scanner_share", "rest_share") if name in measured]
    colours = dict(zip(("patient_share", "scanner_share", "rest_share"), (*COLOURS[:2], "0.8"), strict=True))
    bins = np.linspace(min(0, measured[["icc2", "icc3"]].min().min()), 1, 26)
    for colour, (name, label) in zip(
        COLOURS[2:4], {"icc2": "ICC(2,1), agreement", "icc3": "ICC(3,1), consistency"}.items(), strict=True
    ):
        values = measured.loc[measured["kind"] == "dimension", name].dropna()
        left.hist(values, bins, histtype="step", color=colour, linewidth=1.5, label=label)
    left.set(xlabel="intraclass correlation", ylabel="dimensions")
    left.legend(frameon=False, loc="upper left")
    for panel, kind in zip(others, ("dimension", "component"), strict=True):
        rows = measured[measured["kind"] == kind].dropna(subset=shares)
        rows = rows.sort_values("patient_share", ascending=False) if kind == "dimension" else rows
        panel.stackplot(
            np.arange(len(rows)),
            rows[shares].T,
            colors=[colours[name] for name in shares],
            step="mid",
            labels=[name.removesuffix("_share") for name in shares],
        )
        order = "most of the patient first" if kind == "dimension" else "largest first"
        panel.set(xlabel=f"{kind}s, {order}", ylabel="share of variance", ylim=(0, 1))
        panel.margins(x=0)
    others[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return figure


def draw_associations(rows: pd.DataFrame, level: float = 0.05) -> Figure:
    """Draw the p-values of ``associations.csv`` over the components, and their quantiles beside those of chance."""
    from scipy import stats

    from monai_diffae.latents.association import inflation

    figure = figure_of(11, 4)
    left, right = figure.subplots(1, 2, width_ratios=[2, 1])
    known = rows.dropna(subset=["p"]).assign(log_p=lambda each: -np.log10(each["p"].clip(lower=10.0**-_STRONG)))
    variables = list(known.groupby("variable", sort=False))
    most = max((len(each) for _, each in variables), default=1)
    for place, (name, each) in enumerate(variables):
        colour, is_found = COLOURS[place % len(COLOURS)], each["q"] < level
        shift = (place - (len(variables) - 1) / 2) * 0.6 / len(variables)
        left.scatter(
            each["component"] + shift,
            each["log_p"],
            s=18,
            edgecolors=colour,
            facecolors=np.where(is_found, colour, "none"),
        )
        right.scatter(
            -np.log10((np.arange(len(each)) + 0.5) / len(each)),
            np.sort(each["log_p"])[::-1],
            s=12,
            color=colour,
            label=f"{name} (λ {inflation(each['p']):.2f})",
        )
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
    figure = figure_of(13, 4)
    left, middle, right = figure.subplots(1, 3)
    for place, (name, each) in enumerate(explained.groupby("model", sort=False)):
        errors = [(each["r2"] - each["low"]).clip(lower=0), (each["high"] - each["r2"]).clip(lower=0)]
        left.errorbar(
            each["component"] + 0.2 * place,
            each["r2"],
            errors,
            fmt="o",
            markersize=3,
            linewidth=1,
            color=COLOURS[place],
            label=f"{name} model",
        )
    left.axhline(0.5, color="0.6", linestyle=":")
    left.set(
        xlabel="component",
        ylabel="variance that the other model explains\n(R2 of held-out patients)",
        ylim=(min(-0.05, explained["r2"].min() - 0.05), 1.05),
    )
    left.legend(frameon=False, fontsize=8)
    image = middle.imshow(
        np.abs(correlations),
        vmin=0,
        vmax=1,
        cmap="magma",
        aspect="auto",
        extent=(0.5, correlations.shape[1] + 0.5, correlations.shape[0] + 0.5, 0.5),
    )
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
    intensities: Floats
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


def _bins(values: NDArray[Any]) -> Floats:
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
        label = f"{'failed' if failed else 'doubtful'}: {shortened(kind, _LONGEST_KIND)}"
        panel.text(0, place - 0.29, label, fontsize=8, va="bottom", parse_math=False)
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.set(yticks=[], xlabel="scans", ylim=(len(shown) - 0.4, -0.9))
    panel.margins(x=0.12)


def _draw_intensities(panel: Any, percentiles: Floats) -> None:
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


def _legend_beside(panel: Any) -> None:
    panel.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _panels(num: int, num_axes: int) -> tuple[Any, list[Sequence[Any]]]:
    """A figure with ``num`` panels, each with one axis, or with two axes, the second of which is small."""
    columns = min(num, _MAX_COLUMNS)
    rows = -(-num // columns)
    figure = figure_of(6.0 * columns, (3 + 1.3 * (num_axes - 1)) * rows)
    ratios = {"height_ratios": [3.0, 1.0][:num_axes]}
    parts = figure.subfigures(rows, columns, squeeze=False).ravel()[:num]
    return figure, [part.subplots(num_axes, 1, squeeze=False, sharex=True, gridspec_kw=ratios)[:, 0] for part in parts]
