"""The section with the quality of reconstructions over steps and solvers, from ``evaluate``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, repeat
from typing import Any

from markupsafe import Markup

from monai_diffae.apps.report.charts import Axes, Series, interval_mark, line_chart
from monai_diffae.apps.report.sections import Section, number, omitted, table
from monai_diffae.apps.steps import Outcome
from monai_diffae.apps.web_page import joined
from monai_diffae.errors import counted

Row = Mapping[str, Any]

_TABLES = {
    "reconstruction": "From both codes",
    "z_sem_only": "From z_sem alone",
    "generation": "Synthetic images",
    "z_sem": "z_sem itself",
}
_NAMES = {
    "mse": "MSE ↓", "psnr": "PSNR (dB) ↑", "ssim": "SSIM ↑", "ms_ssim": "MS-SSIM ↑", "lpips": "LPIPS ↓",
    "fid": "FID ↓", "kid": "KID ↓", "mmd": "MMD ↓", "precision": "precision ↑", "recall": "recall ↑",
    "x_T_std": "std of x_T (noise: 1)",
    "x_T_neighbor_correlation": "neighbor correlation of x_T (noise: 0)", "diversity": "diversity",
    "copying_ratio": "copying ratio", "z_sem_usage": "use of z_sem ↑", "dims": "dimensions",
    "active": "active dimensions", "participation_ratio": "participation ratio",
    "dims_for_95_percent": "dimensions for 95 % of the variance",
    "collapse_effective_rank": "collapse (0: none, 1: a line)",
    "collapse_centroid_similarity": "similarity of the classes' centres",
    "collapse_separation": "overlap of classes (1: they are one)",
}  # fmt: skip
_COMPARED = ("psnr", "ssim", "ms_ssim", "lpips", "fid", "kid", "precision", "recall")
_CLEAR = Markup("<strong>{:+.3g}</strong>")
_DRAWN = {"reconstruction": ("psnr", "ssim", "lpips", "x_T_std"), "z_sem_only": ("ssim", "lpips", "diversity")}


def quality_section(outcome: Outcome | None, line: str = "") -> Section | None:
    """Charts, tables and differences between models; None if nothing was evaluated.

    Args:
        outcome: of the step ``evaluate``; None: there was no such step.
        line: its command as a line for a shell.
    """
    if outcome is None:
        return None
    content = omitted(outcome)
    if outcome.result is not None:
        figures = outcome.result.figures()
        rows = figures["rows"]
        parts = [_table_parts(rows, name) for name in _TABLES if any(row["table"] == name for row in rows)]
        content = joined([*parts, *_differences(figures["differences"]), *_notes(figures)])
    lead = (
        "Held-out cases, encoded and decoded in fewer and more steps. Points are means over the cases, bars are 95 % "
        "intervals over the patients. ↑: higher is better, ↓: lower is better."
    )
    return Section("quality", "Quality over steps", lead, content, [line] if line else [])


def _table_parts(rows: Sequence[Row], name: str) -> Markup:
    shown = [row for row in rows if row["table"] == name and row["value"] is not None]
    charts = [_chart(shown, metric) for metric in _DRAWN.get(name, ()) if _has_steps(shown, metric)]
    levels = [row for row in shown if row.get("timestep") is not None]
    if levels:
        charts.append(_usage_chart(levels))
    parts = [Markup("<h3>{}</h3>").format(_TABLES[name]), Markup('<div class="charts">{}</div>').format(joined(charts))]
    captions = chain([f"{_TABLES[name]}: values with 95 % intervals"], repeat(""))
    return joined([*parts, *map(table, _wide([row for row in shown if row.get("timestep") is None]), captions)])


def _usage_chart(rows: Sequence[Row]) -> Markup:
    """The use of z_sem over the noise levels, one line per model."""
    series = []
    for bundle in dict.fromkeys(row["bundle"] for row in rows):
        drawn = sorted((row for row in rows if row["bundle"] == bundle), key=lambda row: row["timestep"])
        series.append(Series(bundle, [row["timestep"] for row in drawn], [row["value"] for row in drawn]))
    return line_chart(series, Axes("timestep (right: pure noise)", "z_sem_usage", reference=1.0))


def _has_steps(rows: Sequence[Row], metric: str) -> bool:
    return len({row["steps"] for row in rows if row["metric"] == metric}) > 1


def _chart(rows: Sequence[Row], metric: str) -> Markup:
    series = []
    for bundle, solver in _conditions(rows):
        drawn = [row for row in rows if (row["bundle"], row["solver"], row["metric"]) == (bundle, solver, metric)]
        drawn.sort(key=lambda row: row["steps"])
        columns = {key: [row[key] for row in drawn] for key in ("steps", "value", "low", "high")}
        name = " ".join(filter(None, [bundle if _is_several(rows, "bundle") else "", solver]))
        series.append(Series(name, columns["steps"], columns["value"], columns["low"], columns["high"]))
    reference = 1.0 if metric == "x_T_std" else None
    return line_chart(series, Axes("steps", _NAMES.get(metric, metric), log_x=True, reference=reference))


def _conditions(rows: Sequence[Row]) -> list[tuple[Any, Any]]:
    return list(dict.fromkeys((row["bundle"], row["solver"]) for row in rows))


def _is_several(rows: Sequence[Row], key: str) -> bool:
    return len({row[key] for row in rows}) > 1


def _wide(rows: Sequence[Row]) -> list[list[dict[str, Any]]]:
    """One line per condition, one column per metric; lines that have different metrics are different tables."""
    keys = ("bundle", "solver", "steps", "features")
    names = [key for key in keys if any(row.get(key) is not None for row in rows)]
    names = [key for key in names if key != "bundle" or _is_several(rows, key)]
    lines: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        condition = tuple(row.get(key) for key in names)
        line = lines.setdefault(condition, dict(zip(names, condition, strict=True)))
        line[_NAMES.get(row["metric"]) or row["metric"]] = _with_interval(row)
    tables: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for line in lines.values():
        tables.setdefault(tuple(line), []).append(line)
    return [[_without_empty(line, group) for line in group] for group in tables.values()]


def _without_empty(line: Row, group: Sequence[Row]) -> dict[str, Any]:
    """A line without the columns that are empty in all lines."""
    return {key: value for key, value in line.items() if any(other[key] is not None for other in group)}


def _with_interval(row: Row) -> Markup:
    text = Markup("{}").format(number(row["value"], 4))
    if row["low"] is None:
        return text
    return Markup('{}<br/><span class="muted small">{} to {}</span>').format(
        text, number(row["low"], 4), number(row["high"], 4)
    )


def _differences(rows: Sequence[Row]) -> Iterator[Markup]:
    """Paired differences between models, with intervals that exclude 0 in bold."""
    shown = [row for row in rows if row["value"] is not None and row["metric"] in _COMPARED]
    if not shown:
        return
    lines = []
    for row in shown:
        low, high = row["low"], row["high"]
        is_clear = low is not None and (low > 0 or high < 0)
        value = _CLEAR.format(row["value"]) if is_clear else f"{row['value']:+.3g}"
        reach = max(abs(row["value"]), abs(low or 0), abs(high or 0)) or 1.0
        lines.append({
            "difference": f"{row['bundle']} minus {row['reference']}",
            "of": _TABLES.get(row["table"], row["table"]),
            "solver": row["solver"],
            "steps": row["steps"],
            "metric": _NAMES[row["metric"]],
            "value": value,
            "95 % interval": "" if low is None else f"{low:+.3g} to {high:+.3g}",
            "": interval_mark(row["value"], low, high, (-reach, reach), 0.0),
        })  # fmt: skip
    yield Markup("<h3>Paired differences</h3>")
    yield table(lines, "Case by case; bold: the interval excludes 0", text_columns=3)


def _notes(figures: Mapping[str, Any]) -> Iterator[Markup]:
    if not figures["held_out"]:
        yield Markup('<p class="warning">{}</p>').format(
            "These cases may have been trained on: the figures are better than those of new cases."
        )
    count, patients = figures["num_cases"], figures["num_patients"]
    yield Markup('<p class="muted small">{}</p>').format(
        f"{counted(count, 'case')} of {counted(patients, 'patient')}, split {figures['split']}."
    )
    for each in figures["omitted"]:
        bundle = f"{each['bundle']}: " if each.get("bundle") else ""
        yield Markup('<p class="muted small">{}</p>').format(f"{bundle}{each['metric']} is left out: {each['reason']}")
