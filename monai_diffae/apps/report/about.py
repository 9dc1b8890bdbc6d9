"""The first sections: what failed, what was trained on what, and the curves of the training."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from monai_diffae.apps.report.charts import Axes, Series, line_chart
from monai_diffae.apps.report.sections import Section, facts, number, table
from monai_diffae.apps.report.study import Study, failures_in
from monai_diffae.apps.steps import Outcome
from monai_diffae.apps.web_page import joined
from monai_diffae.bundle.layout import model_file
from monai_diffae.bundle.model_file import read_description
from monai_diffae.data.embeddings import label_columns
from monai_diffae.errors import counted
from monai_diffae.latents.representation import LEAST_USAGE

_MOST_FAILURES, _MOST_WARNINGS = 50, 3
_INTERVALS = ("validation_low_of_", "validation_high_of_")
_METRIC_TITLES = {
    "z_sem_usage": "Use of z_sem: loss with another image's z_sem / own",
    "copying_ratio": "Copying ratio: distance of samples to training cases / of held-out cases",
    "kl": "KL divergence of the latents",
}


def failure_section(studies: Sequence[Study], folder: Path, common: Sequence[Outcome] = ()) -> Section:
    """What failed, and what to be careful about.

    Args:
        studies: the models of the page.
        folder: the folder of all results.
        common: steps about all models together.
    """
    failed = failures_in(folder)
    outcomes = [(each.step.title, each) for each in common]
    for study in studies:
        of = f" ({study.name})" if len(studies) > 1 else ""
        outcomes += [(f"{each.step.title}{of}", each) for each in study.outcomes.values()]
    parts = [
        Markup('<p class="error"><strong>{}</strong> is omitted: {}</p>').format(title, each.error)
        for title, each in outcomes
        if each.result is None
    ]
    cautions = [f"{study.name}: {text}" if len(studies) > 1 else text for study in studies for text in _cautions(study)]
    parts += [Markup('<p class="warning">{}</p>').format(text) for text in cautions]
    parts += [_warnings(title, each.warnings) for title, each in outcomes if each.warnings]
    if failed:
        rows = [{"case": name, "reason": why, "in": where} for name, why, where in failed[:_MOST_FAILURES]]
        more = "" if len(failed) <= _MOST_FAILURES else f"; the first {_MOST_FAILURES} are shown"
        parts.append(table(rows, f"{counted(len(failed), 'failed case')}{more}", text_columns=3))
    if not parts:
        parts.append(Markup('<p class="good">Nothing failed: every case could be read, and every step ran.</p>'))
    lead = "Read this first: steps that were omitted, cases that could not be used, and figures to be careful with."
    return Section("failures", "What failed", lead, joined(parts))


def _warnings(title: str, warnings: Sequence[str]) -> Markup:
    """The warnings of a step; there may be one per file, so only the first ones are unfolded."""
    first, more = warnings[:_MOST_WARNINGS], warnings[_MOST_WARNINGS:]
    shown = joined([Markup("<br/>{}").format(text) for text in first])
    rest = (
        Markup("<details><summary>{:,} more</summary>{}</details>").format(
            len(more), joined([Markup("{}<br/>").format(text) for text in more])
        )
        if more
        else Markup()
    )
    return Markup('<div class="warning"><strong>{}</strong>{}{}</div>').format(title, shown, rest)


def _cautions(study: Study) -> Iterator[str]:
    """Properties of the model and the cohort that make other figures misleading."""
    usage = study.result("info").summary.get("z_sem_usage")
    if usage is not None and usage < LEAST_USAGE:
        yield (
            f"The decoder hardly uses z_sem: z_sem_usage is {usage:.3f}, and 1 means not at all. Probes, neighbors and "
            "edits tell little; train for longer."
        )
    if study.cohort is None:
        yield "No cohort was given, so this page only shows the training and synthetic images."
    if study.result("embeddings") is not None and not {"val", "test"} & set(study.table.get("split", [])):
        yield "The cohort has no held-out cases, so all figures may be too good: the model may have seen every case."
    reconstructions = study.result("reconstructions")
    std = None if reconstructions is None else reconstructions.means.get("x_T_std")
    if std is not None and abs(std - 1) > 0.1:
        yield f"x_T is not Gaussian noise (standard deviation {std:.2f} instead of 1), so edits decode poorly."
    probe = study.result("probe")
    if probe is not None:
        yield from (f"The label {name} is not predicted: {reason}" for name, reason in probe.omitted_targets.items())


def model_section(study: Study) -> Section:
    """What was trained on what."""
    summary = study.result("info").summary
    size = " × ".join(map(str, summary["image_size"]))
    description = read_description(model_file(study.bundle))
    settings, last = description.get("recipe", {}), description.get("figures", {})
    channels = summary.get("in_channels", 1)
    model = {
        "images": f"{size}, {summary['spatial_dims']}D, {counted(channels, 'channel')}",
        "intensities": summary.get("intensity"),
        "z_sem": f"{summary['z_channels']} numbers",
        "parameters": f"{summary['parameters']:,}",
        "decoding": f"{summary['steps']} steps of {summary['solver']}, inversion in {summary['invert_steps']} steps",
        "SHA-256 of the model": Markup("<code>{}…</code>").format(summary["sha256"][:16]),
    }
    training = {**_seen(curves_of(study.bundle)), **_last(last)}
    changed = {name: json.dumps(value) for name, value in settings.items()}
    parts = [Markup("<h3>Model</h3>"), facts(model), Markup("<h3>Training</h3>"), facts(training)]
    if changed:
        details = Markup(
            '<details class="command"><summary>Settings that differ from the bundle\'s</summary>{}</details>'
        )
        parts.append(details.format(facts(changed)))
    if study.result("embeddings") is not None:
        parts += [Markup("<h3>Cohort</h3>"), _cohort(study.table)]
    lead = "The model, how long it was trained, and the cohort of this page."
    return Section("model", "What was trained on what", lead, joined(parts), study.lines("info", "embeddings"))


def _seen(curves: pd.DataFrame | None) -> dict[str, Any]:
    if curves is None:
        return {}
    last = curves.iloc[-1]
    return {"training steps": f"{last['step']:,.0f}", "images seen": f"{last['images_seen']:,.0f}"}


def _cohort(cases: pd.DataFrame) -> Markup:
    """Cases, patients and labels of each split."""
    splits = cases["split"].astype(str) if "split" in cases else pd.Series("all", index=cases.index)
    rows: list[Mapping[str, Any]] = []
    for name in [each for each in ("train", "val", "test", "all") if each in set(splits)]:
        part = cases[splits == name]
        row: dict[str, Any] = {"split": name, "cases": f"{len(part):,}"}
        if "patient" in part:
            row["patients"] = f"{part['patient'].nunique():,}"
        rows.append(
            {**row, **{label: _described(part[label]) for label in label_columns(cases)[:6] if _is_shown(cases[label])}}
        )
    return table(rows)


def _is_shown(values: pd.Series[Any]) -> bool:
    """Whether a label has few classes or numbers; other text may be names."""
    return pd.api.types.is_numeric_dtype(values) or values.nunique() <= 12


def _described(values: pd.Series[Any]) -> str:
    present = values.dropna()
    if present.empty:
        return "–"
    if pd.api.types.is_numeric_dtype(present) and present.nunique() > 10:
        return f"{present.mean():.3g} ± {present.std():.2g}"
    counts = Counter(present.astype(str))
    return ", ".join(f"{name}: {count}" for name, count in counts.most_common(4))


def curves_of(bundle: Path) -> pd.DataFrame | None:
    """The training curves of a bundle; None if it has none."""
    file = bundle / "curves.csv"
    return pd.read_csv(file) if file.is_file() else None


def curves_section(studies: Sequence[Study]) -> Section | None:
    """The curves of one or several trainings; None if no bundle has any."""
    curves = {study.name: frame for study in studies if (frame := curves_of(study.bundle)) is not None}
    if not curves:
        return None
    charts = [line_chart(_losses(curves), Axes("images seen", "denoising loss", log_y=True), "Loss")]
    metrics = [name for frame in curves.values() for name in map(str, frame) if name.startswith("validation_")]
    hidden = {"validation_loss", "validation_loss_other_z_sem"}
    for metric in dict.fromkeys(name for name in metrics if name not in hidden and not name.startswith(_INTERVALS)):
        name = metric.removeprefix("validation_")
        charts.append(_metric_chart(curves, metric, _METRIC_TITLES.get(name, name.replace("_", " "))))
    lead = "Losses and metrics over the images seen. A validation loss that rises again means overfitting."
    body = Markup('<div class="charts">{}</div>').format(joined(charts))
    return Section("curves", "Training curves", lead, body)


def _losses(curves: Mapping[str, pd.DataFrame]) -> list[Series]:
    series = []
    for name, frame in curves.items():
        prefix = f"{name}: " if len(curves) > 1 else ""
        if "loss" in frame:
            rows = frame.dropna(subset=["loss"])
            smooth = rows["loss"].rolling(max(1, len(rows) // 50), min_periods=1).mean()
            series.append(Series(f"{prefix}training", rows["images_seen"].tolist(), smooth.tolist(), has_markers=False))
        if "validation_loss" in frame:
            rows = frame.dropna(subset=["validation_loss"])
            series.append(Series(f"{prefix}validation", rows["images_seen"].tolist(), rows["validation_loss"].tolist()))
    return series


def _metric_chart(curves: Mapping[str, pd.DataFrame], metric: str, title: str) -> Markup:
    rows = {name: frame.dropna(subset=[metric]) for name, frame in curves.items() if metric in frame}
    series = []
    for name, each in rows.items():
        low, high = (_column(each, metric.replace("validation_", prefix)) for prefix in _INTERVALS)
        series.append(Series(name, each["images_seen"].tolist(), each[metric].tolist(), low, high))
    reference = 1.0 if metric.endswith(("usage", "copying_ratio")) else None
    return line_chart(series, Axes("images seen", metric.removeprefix("validation_"), reference=reference), title)


def _column(frame: pd.DataFrame, name: str) -> list[float] | None:
    return frame[name].tolist() if name in frame else None


def _last(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The last validation, without the ends of intervals, which the curves show."""
    shown = {name: value for name, value in metrics.items() if not f"validation_{name}".startswith(_INTERVALS)}
    return {f"last {name.replace('_', ' ')}": number(value) for name, value in shown.items()}
