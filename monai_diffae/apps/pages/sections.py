"""The sections of a report: each is a function here, which ``SECTIONS`` lists, and a template of its key's name."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from monai_diffae import __version__
from monai_diffae.apps.html import number
from monai_diffae.apps.pages.data import CONFLICTS, ReportData
from monai_diffae.apps.pages.figures import Axes, Series, line_chart
from monai_diffae.apps.pages.images import LIMIT, PANELS, ReportImages, edit_frames, sample_thumbnails
from monai_diffae.apps.pages.latent_map import map_data, nearest, outliers, thumbnail_order
from monai_diffae.apps.pages.scores import calibration_charts, confusion_tables, probe_rows, quality_values
from monai_diffae.apps.record import read_record, record_of
from monai_diffae.apps.synthesis.edit import mask_notes
from monai_diffae.bundle.layout import model_file
from monai_diffae.bundle.model_file import read_description
from monai_diffae.data.cases import TWINS, marks_twins
from monai_diffae.data.embeddings import knows_patients, label_columns, split_origin
from monai_diffae.data.inspection.twins import listed
from monai_diffae.errors import counted
from monai_diffae.latents import Direction
from monai_diffae.latents.representation import LEAST_USAGE

_INTERVALS = ("validation_low_of_", "validation_high_of_")
_METRIC_TITLES = {
    "z_sem_usage": "Use of z_sem: loss with another image's z_sem / own",
    "copying_ratio": "Copying ratio: distance of samples to training cases / of held-out cases",
    "kl": "KL divergence of the latents",
}
_JUDGES = {"probe_": "a linear probe of z_sem", "neighbors_": "the nearest training cases"}
_PANEL_TITLES = dict(
    zip(PANELS, ("input", "from z_sem alone", "difference", "from both codes", "difference"), strict=True)
)
_LEAST_MOVED = 0.25
_LEVEL = 0.05  # of associations
_MANY = 20  # cases, of which a share says something
_MOST_GROUPS = 24  # of scans with different labels that are shown
_NUM_SHOWN = 3  # neighbors beside an outlier or a synthetic image


@dataclass(frozen=True)
class Section:
    """A section of the page."""

    key: str  # its anchor, and the name of its template
    title: str
    values: Mapping[str, Any] = field(default_factory=dict)  # ``v`` in the template
    omitted: Sequence[str] = ()  # why steps have no result
    lines: Sequence[str] = ()  # the commands that made it


@dataclass(frozen=True)
class Report:
    """The models of a page."""

    models: Sequence[ReportData]

    @property
    def is_comparison(self) -> bool:
        """Whether the page has several models."""
        return len(self.models) > 1

    def having(self, step: str) -> list[ReportData]:
        """The models for which a step was run, whether it failed or not."""
        return [model for model in self.models if step in model.outcomes]

    def section(self, key: str, title: str, steps: Sequence[str], values: Mapping[str, Any]) -> Section:
        """A section about some steps of all models."""
        outcomes = [model.outcomes[step] for model in self.models for step in steps if step in model.outcomes]
        errors = [outcome.error for outcome in outcomes if outcome.error is not None]
        return Section(key, title, values, errors, [line for model in self.models for line in model.lines(*steps)])

    @cached_property
    def images(self) -> dict[str, ReportImages]:
        """The images of each model's cases by its name; only of models with a cohort."""
        return {model.name: ReportImages(model) for model in self.models if model.is_embedded}

    @cached_property
    def thumbnails(self) -> dict[str, dict[str, str]]:
        """Thumbnails of each model's cases by its name; the cases that sections show come first."""
        return {
            model.name: self.images[model.name].thumbnails(thumbnail_order(model))
            for model in self.models
            if model.name in self.images
        }

    def values(self) -> dict[str, Any]:
        """The values of the template ``report.html``."""
        names = [model.name for model in self.models]
        sections = [section(self) for section in SECTIONS]
        usages = [(model.name, number(model.summary.get("z_sem_usage"))) for model in self.models]
        tiles = {f"use of z_sem: {name}": (usage, "1: the decoder ignores it") for name, usage in usages}
        return {
            "title": " and ".join([*([", ".join(names[:-1])] if self.is_comparison else []), names[-1]]),
            "answers": _unfair(self.models) if self.is_comparison else _answers(self.models[0]),
            "tiles": tiles if self.is_comparison else _tiles(self.models[0]),
            "sections": list(filter(None, sections)),
            "is_comparison": self.is_comparison,
            "version": __version__,
        }


def _unfair(models: Sequence[ReportData]) -> list[dict[str, str]]:
    """What makes a comparison unfair: models that were trained on cases with which the first one is tested."""
    first, *others = models
    if not all(model.is_embedded and "split" in model.table for model in models):
        return []
    held_out, found = set(first.table.loc[first.table["split"].isin(("val", "test")), "id"]), []
    for model in others:
        if num := len(held_out & set(model.table.loc[model.table["split"] == "train", "id"])):
            text = f"{model.name} was trained on {num} of the {len(held_out)} cases that {first.name} has not seen, so "
            text += "figures of the same cases are not a fair comparison."
            advice = "Train all models with one split: a column split in the table, or the same seed."
            found.append({"kind": "bad", "text": text, "advice": advice})
    return found


def _answers(model: ReportData) -> list[dict[str, str]]:
    """What the page found out, in sentences: a verdict on each label, wrong labels, and what failed."""
    kinds = {"better": "good", "like": "good", "predicts": "good"}
    answers = [("open" if model.uses_z_sem else "bad", text, "") for text in _cautions(model)]
    answers += [(kinds.get(each.answer, "open"), each.sentence, " ".join(each.lines()[1:])) for each in model.verdicts]
    if model.is_embedded and not model.labels:
        advice = "Add a table with labels, such as diagnosis, age or sex."
        answers.append(("open", "The scans have no label that can be predicted.", advice))
    if num := model.conflicts["twins"].nunique():
        text = f"{counted(num, 'group')} of scans that are the same have different labels."
        answers.append(("bad", text, f"Correct them: {CONFLICTS} lists them."))
    if failed := [outcome.step.title for outcome in model.outcomes.values() if outcome.result is None]:
        answers.append(("bad", f"Omitted: {', '.join(failed)}.", 'The section "What failed" says why.'))
    if num := len(model.failures):
        advice = 'The section "What failed" lists them with the reasons.'
        unusable = counted(num, "slice" if model.slices else "scan")
        answers.append(("bad", f"{unusable} could not be used.", advice))
    return [dict(zip(("kind", "text", "advice"), answer, strict=True)) for answer in answers]


# -- wrong labels, what failed, models, curves -------------------------------------------------------------------------


def conflict_section(report: Report) -> Section | None:
    """Scans that are the same but have different labels; None if there are none, or several models."""
    model = report.models[0]
    if report.is_comparison or model.conflicts.empty:
        return None
    groups = [
        [
            {"id": str(name), "labels": ", ".join(f"{row.label}: {row.value}" for row in rows.itertuples())}
            for name, rows in scans.groupby("id", sort=False)
        ]
        for _, scans in model.conflicts.groupby("twins", sort=False)
    ]
    scans = report.images[model.name].scans([case["id"] for group in groups[:_MOST_GROUPS] for case in group])
    values = {"groups": groups, "most": _MOST_GROUPS, "scans": scans, "file": CONFLICTS}
    return Section("conflicts", "Same scan, different labels", values)


def failure_section(report: Report) -> Section:
    """What failed, and what to be careful about."""
    outcomes = []
    for model in report.models:
        for step, outcome in model.outcomes.items():
            name = f" ({model.name})" if report.is_comparison and step != "evaluation" else ""
            outcomes.append((outcome.step.title + name, outcome))
    shown = {outcome.step.title for _, outcome in outcomes}
    prepared = [each for each in report.models[0].steps.with_earlier() if each.step.is_preparation]
    noted = [*((each.step.title, each) for each in prepared if each.step.title not in shown), *outcomes]
    failed = report.models[0].failures
    cautions = [f"{model.name}: {text}" for model in report.models for text in _cautions(model)]
    values = {
        "omitted": [(title, outcome.error) for title, outcome in outcomes if outcome.result is None],
        "cautions": cautions if report.is_comparison else [],
        "warnings": [(title, outcome.warnings) for title, outcome in noted if outcome.warnings],
        "failed": failed,
        "caption": f"{counted(len(failed), 'failed case')}{'; the first 50 are shown' if len(failed) > 50 else ''}",
    }
    return Section("failures", "What failed, and cautions", values)


def _cautions(model: ReportData) -> Iterator[str]:
    """Properties of the model and the cohort that make other figures misleading."""
    usage = model.summary.get("z_sem_usage")
    if usage is not None and usage < LEAST_USAGE:
        advice = "; train for longer" if model.few_images is None else ""
        yield (
            f"The decoder hardly uses z_sem: z_sem_usage is {usage:.3f}, and 1 means not at all. Probes, neighbors and "
            f"edits tell little, so no scan is edited{advice}."
        )
    if model.few_images is not None:
        yield (
            f"{model.few_images} training images are few for a {model.spatial_dims}D model. Compare it with the "
            "baselines, or fine-tune a trained model of such scans."
        )
    if model.is_embedded and split_origin(model.table) == "drawn":
        yield "It is not known which of these scans the model was trained on, so its scores may be too high."
    if model.is_embedded and not knows_patients(model.table):
        yield (
            "The patients are unknown, so each case counts as one: several scans of a patient make scores too high. "
            "A column patient names them, or --patient-pattern finds them in file names."
        )
    if model.cohort is None:
        yield "No cohort was given, so this page only shows the training and synthetic images."
    if model.is_embedded and not {"val", "test"} & set(model.table.get("split", [])):
        yield "The cohort has no held-out cases, so all figures may be too good: the model may have seen every case."
    if model.is_embedded and not model.has_wide and model.can_have_wide is False:
        yield "There are no wide features: embed the training's cohort with features wide, then repeat with overwrite."
    reconstructions = model.result("reconstructions")
    std = None if reconstructions is None else reconstructions.means.get("x_T_std")
    if std is not None and abs(std - 1) > 0.1:
        yield f"x_T is not Gaussian noise (standard deviation {std:.2f} instead of 1), so edits decode poorly."
    probe = model.result("probe")
    if probe is not None:
        yield from (f"The label {name} is not predicted: {reason}" for name, reason in probe.omitted_targets.items())


def model_section(report: Report) -> Section:
    """What was trained on what: models side by side, or one in detail."""
    if report.is_comparison:
        values: dict[str, Any] = {"models": [_model_row(model) for model in report.models]}
    else:
        values = _model_facts(report.models[0])
    return report.section("model", "What was trained on what", ("info", "embeddings"), values)


def _model_row(model: ReportData) -> dict[str, Any]:
    summary, curves = model.summary, _curves_of(model)
    row = {
        "model": model.name,
        "z_sem": summary["z_channels"],
        "images": _size(summary),
        "parameters": f"{summary['parameters']:,}",
        "images seen": None if curves is None else f"{curves['images_seen'].max():,.0f}",
        "use of z_sem": number(summary.get("z_sem_usage")),
        "decoding": f"{counted(summary['steps'], 'step')} of {summary['solver']}",
    }
    if model.result("reconstructions") is not None:
        means = model.result("reconstructions").means
        row |= {"PSNR, z_sem alone": f"{means['psnr_z_sem']:.1f}", "PSNR, both codes": f"{means['psnr_x_T']:.1f}"}
    return row


def _model_facts(model: ReportData) -> dict[str, Any]:
    summary, curves = model.summary, _curves_of(model)
    description = read_description(model_file(model.bundle))
    steps, inversion = counted(summary["steps"], "step"), summary["invert_steps"]
    facts = {
        "images": f"{_size(summary)}, {summary['spatial_dims']}D, {counted(summary.get('in_channels', 1), 'channel')}",
        "intensities": summary.get("intensity"),
        "z_sem": counted(summary["z_channels"], "number"),
        "parameters": f"{summary['parameters']:,}",
        "decoding": f"{steps} of {summary['solver']}, inversion in {inversion}",
        "SHA-256 of the model": f"{summary['sha256'][:16]}…",
    }
    training = {}
    if curves is not None:
        last = curves.iloc[-1]
        training = {"training steps": f"{last['step']:,.0f}", "images seen": f"{last['images_seen']:,.0f}"}
    for name, value in description.get("figures", {}).items():
        if not f"validation_{name}".startswith(_INTERVALS):  # the curves show the ends of intervals
            training[f"last {name.replace('_', ' ')}"] = number(value)
    changed = {name: json.dumps(value) for name, value in description.get("recipe", {}).items()}
    cohort = None if not model.is_embedded else _cohort_rows(model.table)
    tables = {"cohort": cohort, "twins": _twin_sentence(model.table) if cohort else ""}
    return {"models": None, "model": facts, "training": training, "changed": changed, **tables}


def _twin_sentence(cases: pd.DataFrame) -> str:
    """Which scans are the same image, as ``list-scans`` marks them; empty if none are."""
    if TWINS not in cases or not marks_twins(TWINS, cases[TWINS]):
        return ""
    groups = [ids.astype(str).tolist() for _, ids in cases.groupby(TWINS, sort=False)["id"]]
    scans, shown = counted(sum(map(len, groups)), "scan"), listed(" = ".join(ids) for ids in groups)
    return f"{scans} show the same image as another, or nearly so (column {TWINS} of list-scans): {shown}."


def _size(summary: Mapping[str, Any]) -> str:
    return " × ".join(map(str, summary["image_size"]))


def _cohort_rows(cases: pd.DataFrame) -> list[dict[str, Any]]:
    """Cases, patients and labels of each split."""
    splits = cases["split"].astype(str) if "split" in cases else pd.Series("all", index=cases.index)
    labels = [  # few classes, or numbers; other text may be names
        name
        for name in label_columns(cases)[:6]
        if pd.api.types.is_numeric_dtype(cases[name]) or cases[name].nunique() <= 12
    ]
    rows = []
    for name in [each for each in ("train", "val", "test", "all") if each in set(splits)]:
        part = cases[splits == name]
        patients = {"patients": f"{part['patient'].nunique():,}"} if knows_patients(cases) else {}
        row = {"split": name, "cases": f"{len(part):,}", **patients}
        rows.append({**row, **{label: _distribution(part[label]) for label in labels}})
    return rows


def _distribution(values: pd.Series[Any]) -> str:
    present = values.dropna()
    if present.empty:
        return "–"
    if pd.api.types.is_numeric_dtype(present) and present.nunique() > 10:
        return f"{present.mean():.3g} ± {present.std():.2g}"
    counts = Counter(present.astype(str))
    return ", ".join(f"{name}: {count}" for name, count in counts.most_common(4))


def curve_section(report: Report) -> Section | None:
    """The curves of the trainings; None if no bundle has any."""
    curves = {model.name: frame for model in report.models if (frame := _curves_of(model)) is not None}
    if not curves:
        return None
    losses: list[Series] = []
    for name, frame in curves.items():
        prefix = f"{name}: " if len(curves) > 1 else ""
        losses += _series(frame, "loss", f"{prefix}training", is_smooth=True)
        losses += _series(frame, "validation_loss", f"{prefix}validation")
    charts = [line_chart(losses, Axes("images seen", "denoising loss", log_y=True), "Loss")]
    metrics = [str(name) for frame in curves.values() for name in frame if frame[name].notna().any()]
    metrics = [name for name in metrics if name.startswith("validation_")]
    hidden = {"validation_loss", "validation_loss_other_z_sem"}
    for metric in dict.fromkeys(name for name in metrics if name not in hidden and not name.startswith(_INTERVALS)):
        series = [each for name, frame in curves.items() for each in _series(frame, metric, name)]
        short = metric.removeprefix("validation_")
        axes = Axes("images seen", short, reference=1.0 if short in ("z_sem_usage", "copying_ratio") else None)
        charts.append(line_chart(series, axes, _curve_title(short)))
    return Section("curves", "Training curves", {"charts": charts})


def _curve_title(metric: str) -> str:
    for prefix, judge in _JUDGES.items():
        if metric.startswith(prefix):
            return f"{metric.removeprefix(prefix)}: AUROC or R2 of {judge}"
    return _METRIC_TITLES.get(metric, metric.replace("_", " "))


def _curves_of(model: ReportData) -> pd.DataFrame | None:
    file = model.bundle / "curves.csv"
    return pd.read_csv(file) if file.is_file() else None


def _series(curves: pd.DataFrame, column: str, name: str, *, is_smooth: bool = False) -> list[Series]:
    """A column of a training's curves over the images seen, with its interval; empty if it is not there."""
    if column not in curves:
        return []
    rows = curves.dropna(subset=[column])
    values = rows[column].rolling(max(1, len(rows) // 50), min_periods=1).mean() if is_smooth else rows[column]
    ends = [column.replace("validation_", prefix) for prefix in _INTERVALS if column.startswith("validation_")]
    low, high = (rows[end].tolist() for end in ends) if set(ends) <= set(rows) and ends else (None, None)
    return [Series(name, rows["images_seen"].tolist(), values.tolist(), low, high, has_markers=not is_smooth)]


# -- reconstructions, quality, map, probes -----------------------------------------------------------------------------


def reconstruction_section(report: Report) -> Section | None:
    """The same cases, reconstructed by all models; None if the first model reconstructed none."""
    models = [model for model in report.models if model.result("reconstructions") is not None]
    if not models or models[0] is not report.models[0]:
        return None
    cases = {model.name: report.images[model.name].reconstructions() for model in models}
    ids = [name for name in cases[models[0].name] if all(name in each for each in cases.values())]
    panels: list[tuple[str, str, str]] = []  # title, model, key
    if report.is_comparison:
        panels.append(("input", models[0].name, "input"))
        for key in ("z_sem", "x_T"):
            panels += [(f"{model.name}: {_PANEL_TITLES[key]}", model.name, key) for model in models]
        lead = f"The same cases for all models; the input is that of {models[0].name}."
    else:
        panels += [(title, models[0].name, key) for key, title in _PANEL_TITLES.items()]
        lead = (
            "From z_sem alone, the detail is drawn at random: what agrees with the input is what z_sem knows. From "
            "both codes, an image should come back almost exactly."
        )
    captions = _psnr_captions(models, ids)
    shown = [(case_id, [cases[model][case_id][key] for _, model, key in panels]) for case_id in ids]
    shown_cases = [
        {"id": case_id, "panels": strips, "counts": strips[0].counts, "caption": captions[case_id]}
        for case_id, strips in shown
    ]
    values = {
        "lead": f"{_held_out(models[0])} {lead}",
        "titles": [title for title, *_ in panels],
        "cases": shown_cases,
        "is_volumes": any("axial" in case["counts"] for case in shown_cases),
        "limit": None if report.is_comparison else f"{LIMIT:.0%}",
    }
    return report.section("reconstructions", "Reconstructions", ["reconstructions"], values)


def _held_out(model: ReportData) -> str:
    ids = model.outcomes["reconstructions"].step.arguments["cases"]
    splits = {model.pictured[name].split for name in ids}
    if split_origin(model.table) == "drawn":
        return f"{counted(len(ids), 'case')}; it is not known whether the model was trained on them."
    return f"{len(ids)} {'cases, some of which the model was trained on.' if 'train' in splits else 'held-out cases.'}"


def _psnr_captions(models: Sequence[ReportData], ids: Sequence[str]) -> dict[str, str]:
    tables = {model.name: model.read("reconstructions/reconstructions.csv").set_index("id") for model in models}

    def caption(case_id: str) -> str:
        alone = {name: f"{number(table['psnr_z_sem'][case_id])} dB" for name, table in tables.items()}
        if len(models) > 1:
            return "PSNR from z_sem alone: " + ", ".join(f"{name} {psnr}" for name, psnr in alone.items())
        ((name, table),) = tables.items()
        return f"PSNR {alone[name]} from z_sem alone, {number(table['psnr_x_T'][case_id])} dB from both"

    return {case_id: caption(case_id) for case_id in ids}


def quality_section(report: Report) -> Section | None:
    """The quality over steps and solvers, from ``evaluate``; None if nothing was evaluated."""
    outcome = report.models[0].outcomes.get("evaluation")
    if outcome is None:
        return None
    values = quality_values(None if outcome.result is None else outcome.result.json())
    return report.section("quality", "Quality over steps", ["evaluation"], values)


def map_section(report: Report) -> Section | None:
    """The maps of z_sem; None without a cohort."""
    if not report.having("embeddings"):
        return None
    maps = [
        {"name": model.name if report.is_comparison else "", "data": map_data(model, report.thumbnails[model.name])}
        for model in report.models
        if model.is_embedded
    ]
    title = "Maps of z_sem" if report.is_comparison else "Map of z_sem"
    return report.section("map", title, ["embeddings"], {"maps": maps})


def probe_section(report: Report) -> Section | None:
    """Scores of probes of all models, and their calibration; None if nothing was predicted."""
    if not report.having("probe"):
        return None
    models = [model for model in report.models if model.result("probe") is not None]
    values = {
        "is_comparison": report.is_comparison,
        "rows": probe_rows(models),
        "confusions": confusion_tables(models),
        "charts": calibration_charts(models, is_named=report.is_comparison),
    }
    return report.section("probes", "What z_sem knows: probes", ["probe"], values)


def scanner_section(report: Report) -> Section | None:
    """How reliable z_sem is, and what of it is the scanner; None unless a scanner or repeated scans were named."""
    model = report.models[0]
    probe, reliability = model.result("probe"), model.result("reliability")
    rows = [] if probe is None else [row for row in probe.rows if "nuisance_accuracy" in row]
    if report.is_comparison or not (rows or "reliability" in model.outcomes):
        return None

    values = {
        "notes": [] if reliability is None else reliability.notes[:3],
        "picture": None if reliability is None else model.folder / "reliability" / "reliability.png",
        "chance": number(rows[0]["nuisance_chance"]) if rows else None,
        "rows": [
            {
                "label": row["target"],
                "features": row["features"],
                "metric": row["metric"],
                "score": number(row["score"]),
                "of a scanner not fitted to": _cell(row, "left_out_score", "left_out_low", "left_out_high"),
                "accuracy of the scanner": _cell(row, *(f"nuisance_accuracy{end}" for end in ("", "_low", "_high"))),
            }
            for row in rows
        ],
    }
    return report.section("scanner", "Is it the scanner?", ["reliability"], values)


def _cell(row: Mapping[str, Any], value: str, low: str = "low", high: str = "high") -> dict[str, str] | None:
    """A value with the ends of its interval, as the macro ``table`` shows it."""
    names = {"value": value, "low": low, "high": high}
    return None if row.get(value) is None else {key: number(row.get(name)) for key, name in names.items()}


# -- edits, synthetic images, outliers ---------------------------------------------------------------------------------


def association_section(report: Report) -> Section | None:
    """The components that go with labels; only for one model, and None if there was no label."""
    model = report.models[0]
    if report.is_comparison or "associations" not in model.outcomes:
        return None
    values: dict[str, Any] = {"rows": [], "picture": None}
    if (result := model.result("associations")) is not None:
        rows = [
            {
                "label": f"{row['variable']} ({row['contrast']})",
                "component": row["component"],
                "effect": _cell(row, "effect") or "F test",  # of more than two classes
                "share": f"{row['share']:.1%}",
                "p": number(row["p"], 2),
                "q": number(row["q"], 2),
            }
            for row in result.strongest
            if row["q"] is not None and row["q"] < _LEVEL
        ]
        picture = model.folder / "associations" / "associations.png"
        values = {"rows": rows, "picture": picture, "tests": result.num_tests, "found": result.num_significant}
    return report.section("associations", "What goes with what: components", ["associations"], values)


def edit_section(report: Report) -> Section | None:
    """Edited cases, and what the model sees in them, or the main directions; None if there are neither."""
    model = report.models[0]
    if model.result("traversal") is not None:
        reason = "No label is clearly predicted from z_sem" if model.verdicts else "No label was tested"
        picture = model.folder / "traversal" / "components.png"
        values = {"labels": [], "traversal": picture, "chance": [], "reason": reason}
        return report.section("edits", "The main directions of z_sem", ["traversal"], values)
    names = [name for name in model.outcomes if name.startswith(("edits/", "directions/"))]
    if not names:
        return None
    labels = [
        _edited_label(model, name) for name in names if name.startswith("edits/") and model.result(name) is not None
    ]
    directions = (model.result(name) for name in names if name.startswith("directions/"))
    chance = [fitted.direction for fitted in directions if fitted is not None and fitted.direction.may_be_chance]
    texts = [f"No scan is edited along {each.target}: {each.score_text} may be chance." for each in chance]
    values = {"labels": labels, "traversal": None, "chance": texts}
    return report.section("edits", "Edits along a label", names, values)


def _edited_label(model: ReportData, name: str) -> dict[str, Any]:
    direction = model.result(f"directions/{name.removeprefix('edits/')}.json").direction
    achieved, monotone = (getattr(model.result(name), key, None) for key in ("achieved", "monotone"))
    rows = model.read(f"{name}/edits.csv").sort_values("strength")
    texts = [f"Cross-validated {direction.score_text}, fitted to {direction.num_cases} training cases."]
    if achieved is not None:
        little = ", which is too little to show the label" if achieved < _LEAST_MOVED else ""
        texts.append(f"Edited images moved by {achieved:.0%} of the requested strength (median){little}.")
    if monotone is not None:
        num = rows["id"].nunique()
        texts.append(f"The prediction rises with every step in {round(monotone * num)} of {counted(num, 'case')}.")
    texts += [f"{note[0].upper()}{note[1:]}." for note in mask_notes(model.result(name).figures)]
    values = model.table.set_index(model.table["id"].astype(str))[direction.target]
    cases = [
        {"id": case_id, "value": values[model.scan_of[str(case_id)]], "frames": _frames(model, name, direction, part)}
        for case_id, part in rows.groupby("id", sort=False)
    ]
    title = direction.target + (f" (towards {direction.classes[1]})" if direction.classes else "")
    return {"name": direction.target, "title": title, "text": " ".join(texts), "cases": cases}


def _frames(model: ReportData, name: str, direction: Direction, rows: pd.DataFrame) -> list[dict[str, Any]]:
    """The pictures of an edited case, with what the model predicts for each."""
    file_name, folder = model.pictured[rows["id"].iloc[0]].file_name, model.folder / "media" / name
    files = edit_frames(model.folder / name, folder, file_name, rows["strength"].tolist(), is_colour=model.is_colour)
    frames = []
    for row in rows.to_dict("records"):
        prediction = row.get("prediction")
        text = "" if prediction is None else f"{prediction:.0%}" if direction.kind == "binary" else number(prediction)
        image, difference = files[row["strength"]]
        frames.append({"strength": row["strength"], "prediction": text, "image": image, "difference": difference})
    return frames


def sample_section(report: Report) -> Section | None:
    """Synthetic images beside their nearest cases; None without a latent DDIM."""
    model = report.models[0]
    if "samples" not in model.outcomes:
        return None
    samples = {} if model.result("samples") is None else sample_thumbnails(model)
    near = pd.DataFrame({"id": [], "neighbor": [], "distance": []})
    if model.result("samples_neighbors") is not None:
        near = nearest(model, "samples_neighbors")
    images = []
    for name in samples:
        rows = near[near["id"] == name]
        distance = number(rows["distance"].min()) if len(rows) else None
        images.append({"id": name, "near": rows["neighbor"].tolist()[:_NUM_SHOWN], "distance": distance})
    values = {"samples": samples, "thumbnails": report.thumbnails.get(model.name, {}), "images": images}
    title = "Synthetic images and their nearest cases"
    return report.section("samples", title, ["samples", "samples_neighbors"], values)


def outlier_section(report: Report) -> Section | None:
    """The most unusual cases, each with its nearest neighbors; only for one model."""
    model = report.models[0]
    if report.is_comparison or "neighbors" not in model.outcomes:
        return None
    values: dict[str, Any] = {"cases": []}
    if model.result("neighbors") is not None:
        near = nearest(model)
        shares = model.result("neighbors").unusual_shares.get("whitened", {})
        sizes = Counter(model.table["split"].astype(str) if "split" in model.table else ["train"] * len(model.table))
        few = {name: f" (from {counted(num, 'case')}: says little)" for name, num in sizes.items() if num < _MANY}
        cases = [
            {**row, "near": near.loc[near["id"] == row["id"], "neighbor"].tolist()[:_NUM_SHOWN]}
            for row in outliers(model).to_dict("records")
        ]
        texts = ", ".join(f"{share:.1%} of {name}{few.get(name, '')}" for name, share in shares.items())
        values = {"cases": cases, "shares": texts, "thumbnails": report.thumbnails[model.name]}
    return report.section("outliers", "Outliers", ["neighbors"], values)


def explain_section(report: Report) -> Section | None:
    """Counterfactuals of the user's own classifiers, and the labels that they change; None without results."""
    model, shown = report.models[0], []
    for position, folder in enumerate(model.topics.explained, start=1):
        record = read_record(record_of(folder)) or {}
        pictures = model.folder / "media" / "explained" / str(position)
        pictures.mkdir(parents=True, exist_ok=True)
        copies = [Path(shutil.copy(folder / name, pictures)) for name in ("explained.png", "labels.png")]
        shown.append({"name": folder.resolve().name, "pictures": copies, "shortcuts": [], **record["figures"]})
    title = "What a classifier looks at: counterfactuals"
    return report.section("explanations", title, (), {"explained": shown}) if shown else None


SECTIONS: Sequence[Callable[[Report], Section | None]] = (
    conflict_section,
    reconstruction_section,
    edit_section,
    probe_section,
    scanner_section,
    association_section,
    explain_section,
    map_section,
    outlier_section,
    sample_section,
    quality_section,
    model_section,
    curve_section,
    failure_section,
)
"""All sections, in the order of the page."""


# -- figures at a glance -----------------------------------------------------------------------------------------------


def _tiles(model: ReportData) -> dict[str, tuple[str, str]]:
    """The figures at a glance, with a remark each."""
    summary = model.summary
    tiles = {"images": (_size(summary), f"become {summary['z_channels']} numbers, z_sem")}
    curves = _curves_of(model)
    if curves is not None:
        tiles["training images seen"] = (f"{curves['images_seen'].max():,.0f}", f"{curves['step'].max():,.0f} steps")
    if summary.get("z_sem_usage") is not None:
        tiles["use of z_sem"] = (number(summary["z_sem_usage"]), "1: the decoder ignores it")
    if model.is_embedded:
        patients = f"{model.table['patient'].nunique():,}" if knows_patients(model.table) else "unknown"
        tiles["cases"] = (f"{len(model.table):,}", f"{patients} patients")
    if model.result("reconstructions") is not None:
        means = model.result("reconstructions").means
        remark = f"from both codes {means['psnr_x_T']:.1f} dB, as for any model"
        tiles["PSNR from z_sem alone"] = (f"{means['psnr_z_sem']:.1f} dB", remark)
    return tiles
