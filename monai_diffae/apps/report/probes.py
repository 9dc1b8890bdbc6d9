"""The section with probes: scores with intervals, and calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from monai_diffae.apps.report.charts import Axes, Series, interval_mark, line_chart
from monai_diffae.apps.report.sections import Section, number, omitted, table
from monai_diffae.apps.report.study import Study
from monai_diffae.apps.web_page import joined
from monai_diffae.pictures.probes import METRIC_NAMES, calibration_bins

_CHANCE = {"auroc": 0.5, "r2": 0.0}
_LEAST = {"auroc": 0.3, "r2": -0.2}


def probe_section(studies: Sequence[Study]) -> Section | None:
    """Scores of all models, and calibration; None if nothing was predicted."""
    shown = [study for study in studies if "probe" in study.outcomes]
    if not shown:
        return None
    parts = [omitted(study.outcomes["probe"]) for study in shown]
    scored = [study for study in shown if study.result("probe") is not None]
    rows = [_row(study, row, is_named=len(studies) > 1) for study in scored for row in study.result("probe").rows]
    if rows:
        rows.sort(key=lambda row: str(row["label"]))
        parts.append(table(rows, "Scores on patients that the probe has not seen, with 95 % intervals", text_columns=1))
        parts.append(Markup("<h3>Calibration</h3>"))
        parts.append(Markup('<div class="charts">{}</div>').format(joined(_calibration(scored))))
    lead = (
        "Simple models predict each label of patients that they have not seen, from z_sem alone. The dotted mark is "
        "chance: AUROC 0.5, or R2 0. Points on the dotted diagonal are calibrated: of cases with a predicted "
        "probability of 80 %, 80 % have the label."
    )
    lines = [line for study in shown for line in study.lines("probe")]
    return Section("probes", "What z_sem knows: probes", lead, joined(parts), lines)


def _row(study: Study, row: Mapping[str, Any], *, is_named: bool) -> dict[str, Any]:
    metric, score, low, high = row["metric"], row["score"], row["low"], row["high"]
    interval = "" if low is None else f"({number(low)} to {number(high)})"
    limits = (_LEAST.get(metric, min(0.0, score)), 1.0)
    return {
        "label": row["target"],
        **({"model": study.name} if is_named else {}),
        "probe": row["probe"] if row["features"] == "z_sem" else f"{row['probe']}, {row['features']}",
        "metric": METRIC_NAMES[metric],
        "score": Markup("<strong>{}</strong> {}").format(number(score), interval),
        "interval": interval_mark(score, low, high, limits, _CHANCE.get(metric, 0.0)),
        "test patients": f"{row['num_patients']:,}",
    }


def _calibration(studies: Sequence[Study]) -> list[Markup]:
    """One chart per label, with one line per model and probe."""
    lines: dict[str, list[Series]] = {}
    classes: dict[str, bool] = {}
    for study in studies:
        predictions = pd.read_parquet(study.folder / "probe" / "predictions.parquet")
        for (target, features, probe), rows in predictions.groupby(["target", "features", "probe"], sort=False):
            predicted, truth = _predicted_and_truth(rows)
            is_class = classes[str(target)] = bool("truth" in rows and rows["truth"].notna().any())
            x, y = calibration_bins(predicted, truth, is_class)
            prefix = f"{study.name}: " if len(studies) > 1 else ""
            name = f"{prefix}{probe}" if features == "z_sem" else f"{prefix}{probe}, {features}"
            lines.setdefault(str(target), []).append(Series(name, x.tolist(), y.tolist()))
    return [line_chart(each, _axes(each, is_class=classes[name]), name) for name, each in lines.items()]


def _axes(series: Sequence[Series], *, is_class: bool) -> Axes:
    values = [value for each in series for value in (*each.x, *each.y)]
    ends = (0.0, 1.0) if is_class else (min(values), max(values))
    names = ("predicted probability", "observed frequency") if is_class else ("predicted value", "observed mean")
    return Axes(*names, diagonal=ends)


def _predicted_and_truth(rows: pd.DataFrame) -> tuple[Any, Any]:
    """Predictions and true values: those of the second class if there are two classes, else those of all classes."""
    if "truth" not in rows or rows["truth"].isna().all():
        return rows["predicted_value"].to_numpy(float), rows["true_value"].to_numpy(float)
    columns = [name for name in rows if str(name).startswith("probability_") and rows[name].notna().all()]
    shown = columns[1:] if len(columns) == 2 else columns
    truth = np.stack([rows["truth"].astype(str) == str(name).removeprefix("probability_") for name in shown])
    return rows[shown].to_numpy(float).T.ravel(), truth.ravel()
