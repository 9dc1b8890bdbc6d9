"""The command ``probe``: predict labels from z_sem, and from baselines, for held-out patients."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Gt, Le, MinLen
from cyclopts import Group, Parameter
from rich import box
from rich.table import Table

from monai_diffae import latents, pictures
from monai_diffae.apps.command import command
from monai_diffae.apps.record import run_once
from monai_diffae.apps.result import Result, table_lines
from monai_diffae.apps.settings import NONE_GIVEN, Comparison, LabelKinds, Reading, Seed, Split, Writing
from monai_diffae.data.atomic import write_atomic, write_csv
from monai_diffae.data.cases import Case, of_patients
from monai_diffae.data.fingerprints import file_checksum
from monai_diffae.data.progress import track
from monai_diffae.errors import ConfigError, counted, shortened
from monai_diffae.lazy import on_first_use

with on_first_use:
    import numpy as np
    import pandas as pd

    from monai_diffae.apps.evaluation import baselines
    from monai_diffae.data import embeddings as tables
    from monai_diffae.data.inspection import twins
    from monai_diffae.latents import representation
    from monai_diffae.latents import targets as labels

if TYPE_CHECKING:
    from monai_diffae.latents.probing import EvaluatedProbe, ProbeSettings

logger = logging.getLogger(__name__)

EvaluationName = Literal["split", "cv"]
ProbeName = Literal["linear", "knn", "boosting"]

_FAILURES, _EXAMPLES = "probe_failures.csv", 3
_TABLES, _CHARTS = ("probes.csv", "predictions.parquet"), ("calibration.png",)
_CURVES = {"each_regularisation": "regularisation", "few_labels": "few_labels"}  # the setting, and its two files
_FEW_LABEL_COLUMNS = (
    "target",
    "features",
    "probe",
    "metric",
    "num_patients",
    "num_draws",
    "median",
    "low_quartile",
    "high_quartile",
)
_LEFT_OUT_COLUMNS = ("target", "features", "probe", "metric", "left_out", "num_test", "score", "low", "high")


@Parameter(name="*", group=Group("Probes", sort_key=2))
@dataclass(frozen=True)
class Probing:
    """How labels are predicted, and how the predictions are evaluated."""

    evaluation: EvaluationName | None = None
    """``split`` fits to the table's training cases and evaluates on its test cases; ``cv`` is nested cross-validation
    over patients; by default ``split`` if there are enough test patients."""
    splits: Sequence[Split] = ()
    """Cross-validate within these splits only, e.g. ``val test``."""
    probes: Annotated[Sequence[ProbeName], MinLen(1)] = ("linear", "knn")
    """Models that predict the labels."""
    regularisation: Annotated[float, Gt(0), Le(1e12)] | None = None
    """Fix the regularisation of ``linear`` beforehand: C of the logistic regression for classes (smaller is stronger),
    alpha of the ridge regression for numbers (larger is stronger), as in ``probes.csv``; by default inner
    cross-validation chooses it."""
    nuisance: str | None = None
    """A column that should not matter, such as the scanner: also say how well the features tell it, and how well each
    label is predicted for a value of it that the probe was not fitted to."""
    harmonize: str | None = None
    """Remove the effect of this column, such as the scanner, from all features, fitted to the training cases of each
    fold (ComBat, CovBat). No label is protected, so no effect is invented; labels associated with the scanner are
    predicted less well. Cases without a value, or of a scanner with fewer than 10 training cases, are omitted."""
    skip_few_labels: bool = False
    """Do not write scores with the labels of few patients, which take most of the time."""
    seed: Seed = 0
    """Random seed of folds, boosting and bootstrap."""


@command
def probe(
    embeddings: Path,
    out: Path | None = None,
    *,
    targets: Sequence[str] = (),
    kinds: LabelKinds = NONE_GIVEN,
    group_duplicates: bool = False,
    probing: Probing = Probing(),
    comparison: Comparison = Comparison(),
    reading: Reading = Reading(),
    writing: Writing = Writing(),
) -> Result:
    """Predict labels of held-out patients from z_sem, with confidence intervals and baselines.

    Numbers are predicted by ridge regression (R2, MAE), classes by logistic regression (AUROC, AUPRC, balanced
    accuracy, Brier score). Text, booleans and labels with two values are classes. So are whole numbers from 0 to 20
    with at most 10 different values, if these are at most two thirds as many as the labels. ``kinds`` changes this.
    Intervals are bootstrapped over the test patients. A verdict on each label comes first: whether z_sem predicts it
    better than chance and than the baseline, or whether nothing can be said with so few patients. For a table pooled
    with ``mean_std``, both means and standard deviations are features. All features are compared on the cases for which
    all of them are available.

    A target that cannot be probed is omitted with a warning, and so are images that cannot be read. Cases of different
    patients with nearly the same z_sem, which are probably the same image, are warned of. In Python, ``baselines`` also
    takes arrays with one row per row of the table: features [N, D], or images [N, C, *S], which are replaced by as many
    principal components as z_sem has dimensions.

    Args:
        embeddings: Table of embeddings, written by ``embed``.
        out: Folder for tables, predictions, calibration and few-label curves; by default nothing is written.
        targets: Label columns to predict; by default numbers, and text with 2 to 10 classes.
        kinds: Whether labels are ``classes`` or ``numbers``, e.g. ``stage=classes age=numbers``; by default as above.
        group_duplicates: Count patients whose cases have nearly the same z_sem as one; ``cv`` is then the default if
            the table's split separates them.
        reading: How scans are read for ``pixel_baselines``.

    Returns:
        ``rows``, one per target, feature set and probe: ``target``, ``kind``, ``features``, ``dims``, ``probe``; the
        main ``metric`` with ``score``, ``low``, ``high``; ``difference`` (the embeddings' score minus this one, paired)
        with its interval; how it was evaluated; and each metric with its interval; with ``nuisance`` also
        ``nuisance_accuracy``, ``left_out_score`` and ``left_out_change`` (this minus the usual probe's score within
        scanners), each with its interval. ``verdicts``, one per target:
        ``target``, ``answer``, ``sentence``, ``advice``. Also ``omitted_targets``, with the
        reason; ``num_failed``, cases whose images could not be read; and ``twins``, cases with nearly the same z_sem.

    Raises:
        CohortError: a file is not a table of embeddings, or not a table of features of its cases.
        ConfigError: an argument is out of range, there is no such label column, or no target can be probed: too few
            cases, or a patient with both training and test cases.
    """
    if comparison.pixel_baselines and (comparison.bundle is None or comparison.cohort is None):
        raise ConfigError("pixel_baselines: the images are read with bundle and cohort; also give both")
    if probing.splits and probing.evaluation == "split":
        raise ConfigError("splits: applies to cross-validation; omit it, or set evaluation to cv")
    if probing.harmonize is not None and probing.nuisance is not None:
        raise ConfigError("harmonize: needs training cases of all scanners, so none can be left out; omit nuisance")
    from monai_diffae.latents.probing import ProbeSettings, evaluate_probes

    settings = ProbeSettings(
        probing.evaluation,
        tuple(probing.splits),
        tuple(dict.fromkeys(probing.probes)),
        probing.seed,
        dict(kinds),
        few_labels=out is not None and not probing.skip_few_labels,
        regularisation=probing.regularisation,
        each_regularisation=out is not None and "linear" in probing.probes,
        nuisance=probing.nuisance,
        harmonize=probing.harmonize,
    )
    table = tables.read_embeddings(embeddings)
    representation.warn_if_unused(table.attrs.get("monai_diffae", {}).get("z_sem_usage"))
    names = _target_columns(table, targets, probing.nuisance or probing.harmonize, embeddings.name)
    unknown = [name for name in kinds if name not in names]
    if unknown:
        raise ConfigError(f"kinds: '{unknown[0]}' is not among the targets: {', '.join(names)}")
    is_class = {labels.are_classes(table[name].dropna().tolist(), kinds.get(name, "auto")) for name in names}
    if probing.regularisation is not None and len(is_class) > 1:
        raise ConfigError("regularisation: is C for classes and alpha for numbers; set targets to labels of one kind")
    alike = TableTwins.find(table, names, probing.splits)
    knows = {"knows_patients": tables.knows_patients(table)}
    alike = alike.grouped() if group_duplicates else alike
    table, settings = alike.table, alike.settings(settings)
    given = [baselines.feature_set(name, values, table, names) for name, values in comparison.baselines.items()]
    session = baselines.open_images(table, comparison, reading) if comparison.pixel_baselines else None
    pixel_names = list(dict.fromkeys(comparison.pixel_baselines))

    def evaluated(folder: Path | None) -> tuple[list[EvaluatedProbe], dict[str, Any]]:
        feature_sets, num_failed = baselines.compared_features(comparison, table, given, session, folder)
        origin, targets = tables.split_origin(table), track(names, "probing")
        probes, omitted = evaluate_probes(table, targets, feature_sets, settings, split_origin=origin)
        rows = [each.row | knows for each in probes]
        return probes, {"rows": rows, "omitted_targets": omitted, "num_failed": num_failed}

    if out is None:
        return _result(evaluated(None)[1], alike, None, False)
    folder = out  # not None, for mypy also within ``make``
    made_from = {
        "embeddings": file_checksum(embeddings),
        "targets": names,
        **{key: list(value) if isinstance(value, tuple) else value for key, value in asdict(settings).items()},
        "features": list(dict.fromkeys(comparison.features)),
        "together": list(dict.fromkeys(comparison.together)),
        "baselines": {name: baselines.checksum_of_features(values) for name, values in comparison.baselines.items()},
        "pixel_baselines": session and session.made_from(session.cohort.cases, decodes=False, names=pixel_names),
        "group_duplicates": group_duplicates,
        "dpi": writing.dpi,
    }

    def make() -> Mapping[str, Any]:
        probes, figures = evaluated(folder)
        _write_report(folder, table, probes, writing, settings)
        return figures

    curves = [name for setting, name in _CURVES.items() if getattr(settings, setting)]
    files, charts = (
        [*fixed, *(name + end for name in curves)] for fixed, end in ((_TABLES, ".csv"), (_CHARTS, ".png"))
    )
    files += ["left_out.csv"] if settings.nuisance is not None else []
    results = [*(folder / name for name in files), *(file for name in charts for file in writing.files(folder / name))]
    figures, skipped = run_once("probe", folder, results, made_from, make, overwrite=writing.overwrite)
    return _result(figures, alike, folder, skipped)


def _target_columns(table: pd.DataFrame, targets: Sequence[str], nuisance: str | None, name: str) -> list[str]:
    """The label columns to predict; the nuisance is not among them."""
    known = tables.check_labels(table, {"nuisance, harmonize": [nuisance] if nuisance else [], "targets": targets})
    columns = {label: table[label].tolist() for label in known}
    names = list(dict.fromkeys(targets)) or labels.default_targets(columns)
    names = [label for label in names if label != nuisance]
    if not names:
        reasons = {} if targets else {label: labels.reason_against(values, label) for label, values in columns.items()}
        why = ", ".join(f"{label} {reason}" for label, reason in reasons.items())
        remedy = "set targets, or embed a cohort with other labels" if known else "embed a cohort with labels"
        raise ConfigError(f"{name}: has no label to predict{shortened(why and f' ({why})', 200)}; {remedy}")
    return names


def _result(figures: Mapping[str, Any], alike: TableTwins, folder: Path | None, skipped: bool) -> Result:
    from monai_diffae.apps.evaluation.verdicts import find_verdicts

    for target, reason in figures["omitted_targets"].items():
        logger.warning("target '%s' is omitted: %s", target, reason)
    leak = alike.warn(is_split=all(row["evaluation"] == "split" for row in figures["rows"]))
    incomplete = []
    if num_failed := figures["num_failed"]:
        listed = "set out to get a list" if folder is None else f"see {_FAILURES}"
        what = f"{counted(num_failed, 'case')} omitted"
        incomplete.append(f"{what}: images are unreadable ({listed}) or not in the cohort")
    if omitted := figures["omitted_targets"]:
        incomplete.append(f"{counted(len(omitted), 'target')} omitted: {', '.join(omitted)}")
    doubts: dict[str, Any] = {}
    if kept := ", ".join(tables.confounded(alike.table)):  # any label that is correlated with it shows this effect
        leak = f"Harmonizing kept the effect of {kept}, so this may be an artefact of the scanner. {leak}".strip()
        doubts = {"answer": "unclear", "advice": "run probe --harmonize on the original table"}
    verdicts = [
        replace(each, sentence=f"{each.sentence} {leak}", **doubts) if leak and each.is_predicted else each
        for each in find_verdicts(figures["rows"])
    ]
    figures = {**figures, "verdicts": [asdict(each) for each in verdicts], "twins": alike.report.figures()}
    lines = ["\n  ".join(each.lines()) for each in verdicts]
    notes = [*lines, *_score_tables(figures["rows"])]
    told = [line for row in figures["rows"] if "nuisance_chance" in row for line in _nuisance_lines(row)]
    notes += dict.fromkeys(told)  # the same features tell the nuisance equally well beside every target
    return Result(folder, figures, notes, "; ".join(incomplete) or None, skipped=skipped)


def _write_report(
    folder: Path, table: pd.DataFrame, probes: Sequence[EvaluatedProbe], writing: Writing, settings: ProbeSettings
) -> None:
    """Write the files of the result."""
    predictions = pd.concat([_predictions(table, probe) for probe in probes], ignore_index=True)
    write_csv(folder / "probes.csv", pd.DataFrame([probe.row for probe in probes]))
    write_atomic(folder / "predictions.parquet", lambda path: predictions.to_parquet(path, index=False))
    writing.write(folder / "calibration.png", pictures.draw_calibration(predictions))
    if settings.each_regularisation:
        rows = pd.DataFrame([row for probe in probes for row in probe.regularisations])
        write_csv(folder / "regularisation.csv", rows)
        writing.write(folder / "regularisation.png", pictures.draw_regularisations(rows))
    if settings.nuisance is not None:
        rows = pd.DataFrame([row for probe in probes for row in probe.left_out], columns=list(_LEFT_OUT_COLUMNS))
        write_csv(folder / "left_out.csv", rows)
    if settings.few_labels:
        rows = pd.DataFrame([row for probe in probes for row in probe.few_labels], columns=list(_FEW_LABEL_COLUMNS))
        write_csv(folder / "few_labels.csv", rows)
        writing.write(folder / "few_labels.png", pictures.draw_few_labels(rows))


def _score_tables(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lines of one table of scores per target."""
    lines = []
    has_baseline = any(row["difference"] is not None for row in rows)
    for target in dict.fromkeys(row["target"] for row in rows):
        own = [row for row in rows if row["target"] == target]
        first = own[0]
        how = f"fitted to {first['num_train']} others, by the split"
        if first["evaluation"] == "cv":
            how = f"fitted to {first['num_train']} others per fold ({first['num_folds']}-fold nested cross-validation)"
        patients = of_patients(first["num_patients"], first["knows_patients"])
        lines.append(f"{target} ({first['kind']}): evaluated on {counted(first['num_test'], 'case')}{patients}, {how}")
        lines += table_lines(_table(own, has_baseline))
        if shown := first_of_classes(own):
            pairs = zip(shown["classes"], shown["confusion"], strict=True)
            right = [f"{name} {row[code]} of {sum(row)}" for code, (name, row) in enumerate(pairs)]
            lines.append(f"predicted rightly by {shown['features']}: {', '.join(right)}")
    return [*lines, "in brackets: number of features, and 95% intervals"]


def first_of_classes(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The first row of a target's linear probe, which the verdict is on, if it predicts classes."""
    return next((row for row in rows if row["probe"] == "linear" and row.get("confusion")), None)


def _nuisance_lines(row: Mapping[str, Any]) -> Iterator[str]:
    """How well the nuisance can be told, and what is predicted where it was left out."""
    told = _with_interval(row, "nuisance_accuracy", "nuisance_accuracy_low", "nuisance_accuracy_high")
    features = f"{row['features']}, {row['probe']}"
    yield f"{features}: the nuisance is told with a balanced accuracy of {told}; chance is {row['nuisance_chance']:.3f}"
    if row.get("left_out_score") is not None:
        score = _with_interval(row, "left_out_score", "left_out_low", "left_out_high")
        change = _with_interval(row, "left_out_change", "left_out_change_low", "left_out_change_high")
        yield (
            f"{row['target']} from {features}: {row['metric']} {score} for values of the nuisance that it was not "
            f"fitted to; change {change}"
        )


def _table(rows: Sequence[Mapping[str, Any]], has_baseline: bool) -> Table:
    from monai_diffae.pictures.charts import METRIC_NAMES

    main, *others = [name for name in METRIC_NAMES if name in rows[0]]
    table = Table("features", "probe", box=box.SIMPLE_HEAD)
    for name in [main, *others]:
        table.add_column(METRIC_NAMES[name], justify="right")
    if has_baseline:
        table.add_column(f"{rows[0]['features']} minus this", justify="right")
    for row in rows:
        cells = [_with_interval(row, "score", "low", "high"), *(_number(row[name]) for name in others)]
        if has_baseline:
            cells.append(_with_interval(row, "difference", "difference_low", "difference_high"))
        table.add_row(f"{row['features']} ({row['dims']})", row["probe"], *cells)
    return table


def _with_interval(row: Mapping[str, Any], value: str, low: str, high: str) -> str:
    return "" if row[value] is None else f"{_number(row[value])} ({_number(row[low])}, {_number(row[high])})"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"


def _predictions(table: pd.DataFrame, probe: EvaluatedProbe) -> pd.DataFrame:
    """One row per test case: its class as text with the probabilities of all classes, or numbers."""
    predictions = probe.predictions
    target = predictions.target
    rows = table.iloc[target.rows]
    columns: dict[str, Any] = {name: rows[name].astype(str).to_numpy() for name in ("id", "patient") if name in rows}
    columns |= {name: probe.row[name] for name in ("target", "features", "probe")} | {"fold": predictions.fold}
    if target.classes is None or predictions.ranking is None:
        columns |= {"true_value": target.values, "predicted_value": predictions.predicted}
        columns |= {} if predictions.baseline is None else {"training_mean": predictions.baseline}
    else:
        names = np.array(target.classes, object)
        columns |= {"truth": names[target.values], "predicted": names[predictions.predicted_class]}
        columns |= {f"probability_{name}": predictions.predicted[:, code] for code, name in enumerate(names)}
        columns |= {f"ranking_{name}": values for name, values in zip(names, predictions.ranking.T, strict=True)}
    return pd.DataFrame(columns)


# -- twins: cases of different patients with nearly the same z_sem -----------------------------------------------------


@dataclass(frozen=True, eq=False)
class TableTwins:
    """The twins of a table."""

    table: pd.DataFrame
    cases: list[Case]
    groups: list[twins.TwinGroup]  # rows with nearly the same z_sem
    report: twins.TwinReport  # what they mean for splits and labels
    is_grouped: bool = False  # whether twins count as one patient

    @classmethod
    def find(cls, table: pd.DataFrame, targets: Sequence[str], splits: Sequence[str] = ()) -> TableTwins:
        """Find the twins among the cases of some splits (none given: of all), and compare their labels."""
        cases = _cases(table, targets)
        used = np.array([row for row, case in enumerate(cases) if not splits or case.split in splits], np.intp)
        z = tables.z_matrix(table)
        pairs = used[latents.near_pairs(z[used], [cases[row].patient for row in used])].tolist() if len(used) else []
        groups = twins.linked_groups(pairs, [row.tobytes() for row in z])
        return cls(table, cases, groups, twins.report_twins(cases, groups))

    def warn(self, is_split: bool) -> str:
        """Warn of twins with different labels or on both sides of a probe, and return what a verdict says."""
        pairs = [] if self.is_grouped else self.report.separated if is_split else self.report.other_patients
        whose = " of different patients" if tables.knows_patients(self.table) else ""
        what = f"{counted(len(pairs), 'group')} of cases{whose} with nearly the same z_sem"
        if pairs:
            examples = "; ".join(" = ".join(pair.ids) for pair in pairs[:_EXAMPLES])
            logger.warning(
                "%s, such as %s: they are probably the same image, so scores may be too high; monai-diffae probe "
                "--group-duplicates keeps them together",
                what,
                examples,
            )
        for line in self.report.contradictions():
            logger.warning("%s", line)
        return f"Twins: {what}, probably the same image: scores may be too high." if pairs else ""

    def grouped(self) -> TableTwins:
        """The table with one patient for the twins of a group."""
        patients = twins.merge_patients([case.patient for case in self.cases], self.groups)
        return replace(self, table=self.table.assign(patient=patients), is_grouped=True)

    def settings(self, settings: ProbeSettings) -> ProbeSettings:
        """Settings with cross-validation instead of the table's split, if that separates twins and was not chosen."""
        is_split_usable = not (self.is_grouped and self.report.separated)
        return settings if is_split_usable or settings.evaluation is not None else replace(settings, evaluation="cv")


def _cases(table: pd.DataFrame, targets: Sequence[str]) -> list[Case]:
    ids = [str(value) for value in (table["id"] if "id" in table else range(len(table)))]
    patients = tables.patients_of(table)
    splits = table["split"].astype(str).tolist() if "split" in table else [None] * len(ids)
    columns = {name: table[name].tolist() for name in targets}
    is_missing = {name: labels.missing(values) for name, values in columns.items()}
    return [
        Case(
            id=ids[row],
            images={},
            split=splits[row],
            patient=str(patients[row]),
            labels={name: None if is_missing[name][row] else _label(values[row]) for name, values in columns.items()},
        )
        for row in range(len(ids))
    ]


def _label(value: object) -> float | str:
    is_fraction = isinstance(value, (float, np.floating)) and not float(value).is_integer()
    return float(value) if is_fraction else labels.class_name(value)  # type: ignore[arg-type]
