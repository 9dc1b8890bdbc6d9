"""Scores on a report's page: of probes, and the quality of reconstructions over steps and solvers."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from monai_diffae.apps.evaluation.probe import first_of_classes
from monai_diffae.apps.evaluation.verdicts import CHANCE
from monai_diffae.apps.html import number
from monai_diffae.apps.pages.data import ReportData
from monai_diffae.apps.pages.figures import Axes, Chart, Series, line_chart
from monai_diffae.data.cases import of_patients
from monai_diffae.errors import counted
from monai_diffae.pictures.charts import METRIC_NAMES, calibration_bins, predictions_and_truth

Row = Mapping[str, Any]

_LEAST = {"auroc": 0.3, "r2": -0.2}
_TABLES = {
    "reconstruction": "From both codes",
    "z_sem_only": "From z_sem alone",
    "generation": "Synthetic images",
    "z_sem": "z_sem itself",
}
_NAMES = {
    "mse": "MSE ↓",
    "psnr": "PSNR (dB) ↑",
    "ssim": "SSIM ↑",
    "ms_ssim": "MS-SSIM ↑",
    "lpips": "LPIPS ↓",
    "fid": "FID ↓",
    "kid": "KID ↓",
    "mmd": "MMD ↓",
    "precision": "precision ↑",
    "recall": "recall ↑",
    "x_T_std": "std of x_T (noise: 1)",
    "x_T_neighbor_correlation": "neighbor correlation of x_T (noise: 0)",
    "diversity": "diversity",
    "copying_ratio": "copying ratio",
    "z_sem_usage": "use of z_sem ↑",
    "z_sem_usage_mean": "use of z_sem, by the mean z_sem ↑",
    "dims": "dimensions",
    "active": "active dimensions",
    "participation_ratio": "participation ratio",
    "dims_for_95_percent": "dimensions for 95 % of the variance",
    "collapse_effective_rank": "collapse (0: none, 1: a line)",
    "collapse_centroid_similarity": "similarity of the classes' centres",
    "collapse_separation": "overlap of classes (1: they are one)",
}
_FEWEST_CASES, _OF_CASES = 10, ("reconstruction", "z_sem_only")  # for figures of a whole set; tables of single cases
_COMPARED = ("psnr", "ssim", "ms_ssim", "lpips", "fid", "kid", "precision", "recall")
_DRAWN = {"reconstruction": ("psnr", "ssim", "lpips", "x_T_std"), "z_sem_only": ("ssim", "lpips", "diversity")}


def interval_mark(
    value: float, low: float | None, high: float | None, limits: tuple[float, float], reference: float
) -> dict[str, float | None]:
    """Where a value, its interval and a reference lie between two limits, in percent."""

    def place(x: float | None) -> float | None:
        if x is None or x != x:  # NaN
            return None
        share = (min(max(x, limits[0]), limits[1]) - limits[0]) / ((limits[1] - limits[0]) or 1)
        return round(100 * share, 1)

    return {"value": place(value), "low": place(low), "high": place(high), "reference": place(reference)}


# -- probes ------------------------------------------------------------------------------------------------------------


def probe_rows(models: Sequence[ReportData]) -> list[dict[str, Any]]:
    """The scores of all models' probes, label by label."""
    rows = [_probe_row(model, row) for model in models for row in model.result("probe").rows]
    order = list(dict.fromkeys(row["label"] for row in rows))
    return sorted(rows, key=lambda row: order.index(row["label"]))


def _probe_row(model: ReportData, row: Row) -> dict[str, Any]:
    metric, score, low, high = row["metric"], row["score"], row["low"], row["high"]
    limits = (_LEAST.get(metric, min(0.0, score)), 1.0)
    return {
        "label": row["target"],
        "model": model.name,
        "probe": _probe_name(row["probe"], row["features"]),
        "metric": METRIC_NAMES[metric],
        "score": number(round(score, 3) + 0.0),  # not -8e-06
        "patients": f"{row['num_patients']:,}" if row.get("knows_patients", True) else "unknown",
        "interval": "" if low is None else f"({number(low)} to {number(high)})",
        "mark": interval_mark(score, low, high, limits, CHANCE.get(metric, 0.0)),
    }


def confusion_tables(models: Sequence[ReportData]) -> list[dict[str, Any]]:
    """For each label with classes, how often each was predicted as each, by the features of the verdict."""
    tables = []
    for model in models:
        rows = model.result("probe").rows
        for target in dict.fromkeys(row["target"] for row in rows):
            if first := first_of_classes([row for row in rows if row["target"] == target]):
                whose = f"{model.name}: " if len(models) > 1 else ""
                tables.append({"title": f"{whose}{target}, from {first['features']}", "rows": _confusion_rows(first)})
    return tables


def _confusion_rows(row: Row) -> list[dict[str, Any]]:
    names = row["classes"]
    return [
        {
            row["target"]: name,
            **{f"predicted {each}": count for each, count in zip(names, counts, strict=True)},
            "right": f"{counts[code] / max(sum(counts), 1):.0%}",
        }
        for code, (name, counts) in enumerate(zip(names, row["confusion"], strict=True))
    ]


def _probe_name(probe: str, features: str) -> str:
    return features if probe == "linear" else f"{features}, {probe}"


def calibration_charts(models: Sequence[ReportData], *, is_named: bool) -> list[Chart]:
    """One chart per label that z_sem predicts, with one line per model and probe."""
    lines: dict[str, list[Series]] = {}
    classes: dict[str, bool] = {}
    for model in models:
        predictions = pd.read_parquet(model.folder / "probe" / "predictions.parquet")
        predictions = predictions[predictions["target"].isin(model.predicted)]
        for (target, features, probe), rows in predictions.groupby(["target", "features", "probe"], sort=False):
            predicted, truth, is_class = predictions_and_truth(rows)
            classes[str(target)] = is_class
            x, y = calibration_bins(predicted, truth, is_class)
            name = f"{f'{model.name}: ' if is_named else ''}{_probe_name(str(probe), str(features))}"
            lines.setdefault(str(target), []).append(Series(name, x.tolist(), y.tolist()))
    charts = []
    for target, series in lines.items():
        values = [value for each in series for value in (*each.x, *each.y)]
        axes = Axes("predicted value", "observed mean", diagonal=(min(values), max(values)))
        if classes[target]:
            axes = Axes("predicted probability", "observed frequency", diagonal=(0.0, 1.0))
        charts.append(line_chart(series, axes, target))
    return charts


# -- quality over steps and solvers ------------------------------------------------------------------------------------


def quality_values(figures: Mapping[str, Any] | None) -> dict[str, Any]:
    """The figures of ``evaluate`` as charts, tables, differences and notes; all empty without figures."""
    if figures is None:
        return {"parts": [], "differences": [], "may_be_trained_on": False, "notes": []}
    rows = figures["rows"]
    patients = of_patients(figures["num_patients"], figures.get("knows_patients", True))
    notes = [f"{counted(figures['num_cases'], 'case')}{patients}, split {figures['split']}."]
    if figures["num_cases"] < _FEWEST_CASES:
        rows = [row for row in rows if row["table"] in _OF_CASES or row["metric"] == "z_sem_usage"]
        notes.append("So few cases say nothing about dimensions of z_sem, copies, or the distance of synthetic images.")
    for each in figures["omitted"]:
        bundle = f"{each['bundle']}: " if each.get("bundle") else ""
        notes.append(f"{bundle}{each['metric']} is left out: {each['reason']}")
    return {
        "parts": [_part(rows, name) for name in _TABLES if any(row["table"] == name for row in rows)],
        "differences": list(_differences(figures["differences"])),
        "may_be_trained_on": not figures["held_out"],
        "notes": notes,
    }


def _part(rows: Sequence[Row], name: str) -> dict[str, Any]:
    shown = [row for row in rows if row["table"] == name and row["value"] is not None]
    steps = {metric: {row["steps"] for row in shown if row["metric"] == metric} for metric in _DRAWN.get(name, ())}
    charts = [_chart(shown, metric) for metric, numbers in steps.items() if len(numbers) > 1]
    levels = [row for row in rows if (row["table"], row["metric"]) == ("noise_levels", "z_sem_usage")]
    if levels and name == "z_sem":
        charts.append(_usage_chart(levels))
    return {"title": _TABLES[name], "charts": charts, "tables": _wide(shown)}


def _usage_chart(rows: Sequence[Row]) -> Chart:
    """The use of z_sem over the noise levels, one line per model."""
    series = []
    for bundle in dict.fromkeys(row["bundle"] for row in rows):
        drawn = sorted((row for row in rows if row["bundle"] == bundle), key=lambda row: row["timestep"])
        series.append(Series(bundle, [row["timestep"] for row in drawn], [row["value"] for row in drawn]))
    return line_chart(series, Axes("timestep (right: pure noise)", "z_sem_usage", reference=1.0))


def _chart(rows: Sequence[Row], metric: str) -> Chart:
    series = []
    for bundle, solver in dict.fromkeys((row["bundle"], row["solver"]) for row in rows):
        drawn = [row for row in rows if (row["bundle"], row["solver"], row["metric"]) == (bundle, solver, metric)]
        drawn.sort(key=lambda row: row["steps"])
        columns = {key: [row[key] for row in drawn] for key in ("steps", "value", "low", "high")}
        name = " ".join(filter(None, [bundle if _is_several(rows, "bundle") else "", solver]))
        series.append(Series(name, columns["steps"], columns["value"], columns["low"], columns["high"]))
    reference = 1.0 if metric == "x_T_std" else None
    return line_chart(series, Axes("steps", _NAMES.get(metric, metric), log_x=True, reference=reference))


def _is_several(rows: Sequence[Row], key: str) -> bool:
    return len({row[key] for row in rows}) > 1


def _wide(rows: Sequence[Row]) -> list[list[dict[str, Any]]]:
    """One line per condition, one column per metric; lines that have different metrics are different tables."""
    keys = ("bundle", "solver", "steps", "features")
    several = [key for key in keys if key != "bundle" or _is_several(rows, key)]
    names = [key for key in several if any(row.get(key) is not None for row in rows)]
    lines: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        condition = {key: row.get(key) for key in names}
        line = lines.setdefault(tuple(condition.values()), condition)
        cell = {key: number(row[key], 4) for key in ("value", "low", "high")}
        name: str = _NAMES.get(row["metric"]) or row["metric"]
        line[name] = cell["value"] if row["low"] is None else cell
    tables: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for line in lines.values():
        tables.setdefault(tuple(line), []).append(line)
    for columns, group in tables.items():
        for empty in [key for key in columns if all(line[key] is None for line in group)]:
            for line in group:
                del line[empty]
    return list(tables.values())


def _differences(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Paired differences between models."""
    for row in rows:
        value, low, high = row["value"], row["low"], row["high"]
        if value is None or row["metric"] not in _COMPARED:
            continue
        reach = max(abs(value), abs(low or 0), abs(high or 0)) or 1.0
        yield {
            **row,
            "of": _TABLES.get(row["table"], row["table"]),
            "metric": _NAMES[row["metric"]],
            "is_clear": low is not None and (low > 0 or high < 0),
            "value": f"{value:+.3g}",
            "interval": "" if low is None else f"{low:+.3g} to {high:+.3g}",
            "mark": interval_mark(value, low, high, (-reach, reach), 0.0),
        }
