"""The command ``probe``: predict labels from z_sem, and from baselines, for held-out patients."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cyclopts import Group, Parameter

from monai_diffae.apps.command import command
from monai_diffae.apps.results import CommandResult, run_once
from monai_diffae.apps.settings import NONE_GIVEN, LabelKinds, NamedFiles, Reading, Seed, Split
from monai_diffae.errors import ConfigError, counted

if TYPE_CHECKING:
    import pandas as pd

    from monai_diffae.apps.evaluation.baselines import PixelBaselines
    from monai_diffae.apps.evaluation.probe_twins import TableTwins
    from monai_diffae.latents.probing.evaluation import EvaluatedProbe, ProbeSettings

logger = logging.getLogger(__name__)

EvaluationName = Literal["split", "cv"]
ProbeName = Literal["linear", "knn", "boosting"]
PixelBaseline = Literal["pca", "intensity"]

_FAILURES = "probe_failures.csv"


@Parameter(name="*", group=Group("Comparison", sort_key=3))
@dataclass(frozen=True)
class Comparison:
    """What z_sem is compared with."""

    baselines: NamedFiles = field(default_factory=dict)
    """Features to compare with: CSV or Parquet tables with a column id, e.g. ``radiomics=radiomics.csv``."""
    pixel_baselines: Sequence[PixelBaseline] = ()
    """Features to compute from the pixels and to compare with; these need ``bundle`` and ``cohort``."""
    bundle: Path | None = None
    """Folder of the bundle that made the embeddings; used only for ``pixel_baselines``."""
    cohort: Path | None = None
    """The cohort that was embedded: folder, CSV/TSV, MONAI datalist or single scan."""


@dataclass(frozen=True)
class ProbeResult(CommandResult):
    """The result of :func:`probe`.

    Attributes:
        rows: one row per target, feature set and probe: ``target``, ``kind``, ``features``, ``dims``, ``probe``; the
            main ``metric`` with ``score``, ``low``, ``high``; ``difference``, ``difference_low``, ``difference_high``
            (the embeddings' score minus this one, paired); how it was evaluated; and each metric as ``auroc``,
            ``auroc_low``, ``auroc_high``. Values that do not apply are None.
        folder: the folder of the files; None if nothing was written.
        omitted_targets: the targets that cannot be probed, with the reason.
        num_failed: cases of the table whose images could not be read for ``pixel_baselines``.
        skipped: whether the results were complete already.
        twins: groups of cases of different patients with nearly the same z_sem, and which of them differ in split or
            labels.
    """

    rows: list[dict[str, Any]]
    folder: Path | None = None
    omitted_targets: dict[str, str] = field(default_factory=dict)
    num_failed: int = 0
    skipped: bool = False
    twins: dict[str, Any] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        """One table per target, then the folder."""
        from monai_diffae.apps.evaluation.probe_report import score_tables

        yield from score_tables(self.rows)
        if self.folder is not None:
            yield str(self.folder)

    def figures(self) -> dict[str, Any]:
        """The rows, what they do not cover, and twins."""
        omitted = {"omitted_targets": self.omitted_targets, "num_failed": self.num_failed}
        return {"rows": self.rows, **omitted, "twins": self.twins}

    @property
    def incomplete(self) -> str | None:
        """How many cases and which targets were omitted."""
        omitted = []
        if self.num_failed:
            listed = "set out to get a list" if self.folder is None else f"see {_FAILURES}"
            omitted.append(
                f"{counted(self.num_failed, 'case')} omitted: images are unreadable ({listed}) or not in the cohort"
            )
        if self.omitted_targets:
            omitted.append(f"{counted(len(self.omitted_targets), 'target')} omitted: {', '.join(self.omitted_targets)}")
        return "; ".join(omitted) or None


@command
def probe(
    embeddings: Path,
    out: Path | None = None,
    *,
    targets: Sequence[str] = (),
    kinds: LabelKinds = NONE_GIVEN,
    evaluation: EvaluationName | None = None,
    splits: Sequence[Split] = (),
    probes: Sequence[ProbeName] = ("linear", "knn"),
    seed: Seed = 0,
    group_duplicates: bool = False,
    comparison: Comparison = Comparison(),
    reading: Reading = Reading(),
    overwrite: bool = False,
) -> ProbeResult:
    """Predict labels of held-out patients from z_sem, with confidence intervals and baselines.

    Numbers are predicted by ridge regression (R2, MAE), classes by logistic regression (AUROC, AUPRC, balanced
    accuracy, Brier score). Text, booleans and labels with two values are classes. So are whole numbers from 0 to 20
    with at most 10 different values, if these are at most two thirds as many as the labels. The title of each table
    says what a label was taken for; ``kinds`` changes it. Intervals are bootstrapped over the test patients. For a
    table pooled with ``mean_std``, both means and standard deviations are features. All features are compared on the
    cases for which all of them are available.

    Cases of different patients with nearly the same z_sem are probably the same image. A warning lists them if a probe
    may be fitted to one and evaluated on the other, or if their labels differ.

    A target that cannot be probed is omitted with a warning, and so are images that cannot be read. In Python,
    ``baselines`` also takes arrays with one row per row of the table: features [N, D], or images [N, C, *S], which are
    replaced by as many principal components as z_sem has dimensions.

    Args:
        embeddings: Table of embeddings, written by ``embed``.
        out: Folder for tables, predictions, calibration and few-label curves; by default nothing is written.
        targets: Label columns to predict; by default all numeric ones.
        kinds: Whether labels are ``classes`` or ``numbers``, e.g. ``stage=classes age=numbers``; by default as above.
        evaluation: ``split`` fits to the table's training cases and evaluates on its test cases; ``cv`` is nested
            cross-validation over patients; by default ``split`` if there are enough test patients.
        splits: Cross-validate within these splits only, e.g. ``val test``.
        probes: Models that predict the labels.
        seed: Random seed of folds, boosting and bootstrap.
        group_duplicates: Count patients whose cases have nearly the same z_sem as one; ``cv`` is then the default if
            the table's split separates them.
        comparison: What z_sem is compared with.
        reading: How scans are read for ``pixel_baselines``.
        overwrite: Replace existing results.

    Returns:
        The scores.

    Raises:
        CohortError: a file is not a table of embeddings, or not a table of features of its cases.
        ConfigError: an argument is out of range, there is no such label column, or no target can be probed: too few
            cases, or a patient with both training and test cases.

    Example:
        >>> probe("no.parquet")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.CohortError: no.parquet: there is no such file; make it with monai-diffae embed
    """
    _check_comparison(comparison)
    from monai_diffae.apps.evaluation.baselines import PixelBaselines, checksum_of_features
    from monai_diffae.apps.evaluation.probe_report import FILES, write_report
    from monai_diffae.apps.evaluation.probe_twins import TableTwins
    from monai_diffae.data.embeddings import read_embeddings
    from monai_diffae.data.file_checksums import file_checksum
    from monai_diffae.latents.probing.evaluation import ProbeSettings
    from monai_diffae.latents.representation import warn_if_unused

    settings = ProbeSettings(evaluation, tuple(splits), tuple(dict.fromkeys(probes)), seed, dict(kinds))
    table = read_embeddings(embeddings)
    warn_if_unused(table.attrs.get("monai_diffae", {}).get("z_sem_usage"))
    names = _target_columns(table, targets, embeddings.name)
    unknown = [name for name in kinds if name not in names]
    if unknown:
        raise ConfigError(f"kinds: '{unknown[0]}' is not among the targets: {', '.join(names)}")
    twins = TableTwins.find(table, names, splits)
    twins = twins.grouped() if group_duplicates else twins
    table, settings = twins.table, twins.settings(settings)
    pixels = PixelBaselines.open(table, comparison, reading) if comparison.pixel_baselines else None
    if out is None:
        _, figures = _evaluate(table, names, settings, comparison.baselines, pixels, None)
        return _result(figures, twins, None, False)
    folder = out  # not None, for mypy also within ``make``
    made_from = {
        "embeddings": file_checksum(embeddings),
        "targets": names,
        **{key: list(value) if isinstance(value, tuple) else value for key, value in asdict(settings).items()},
        "baselines": {name: checksum_of_features(values) for name, values in comparison.baselines.items()},
        "pixel_baselines": None if pixels is None else pixels.made_from,
        "group_duplicates": group_duplicates,
    }

    def make() -> Mapping[str, Any]:
        evaluated, figures = _evaluate(table, names, settings, comparison.baselines, pixels, folder)
        write_report(folder, table, evaluated)
        return figures

    results = [folder / name for name in FILES]
    figures, skipped = run_once(folder / "probe.json", results, made_from, make, overwrite=overwrite)
    return _result(figures, twins, folder, skipped)


def _check_comparison(comparison: Comparison) -> None:
    if comparison.pixel_baselines:
        missing = [name for name in ("bundle", "cohort") if getattr(comparison, name) is None]
        if missing:
            raise ConfigError(
                f"pixel_baselines: the images are read with bundle and cohort; also give {' and '.join(missing)}"
            )
    elif comparison.cohort is not None:
        raise ConfigError("cohort: is only used for pixel_baselines; set pixel_baselines, or omit cohort")


def _target_columns(table: pd.DataFrame, targets: Sequence[str], name: str) -> list[str]:
    """The label columns to predict.

    Raises:
        ConfigError: there is no such column, or no numeric one if none was named.
    """
    from pandas.api.types import is_numeric_dtype

    from monai_diffae.data.embeddings import label_columns

    labels = label_columns(table)
    for target in targets:
        if target not in labels:
            raise ConfigError(
                f"targets: there is no label column '{target}'; choose from: {', '.join(labels) or 'none'}"
            )
    numeric = [label for label in labels if is_numeric_dtype(table[label]) and table[label].nunique() > 1]
    names = list(dict.fromkeys(targets)) or numeric
    if not names:
        remedy = "choose others as targets" if labels else "embed a cohort with labels"
        raise ConfigError(f"{name}: there is no numeric label column to predict; {remedy}")
    return names


def _evaluate(
    table: pd.DataFrame,
    targets: Sequence[str],
    settings: ProbeSettings,
    baselines: Mapping[str, Any],
    pixels: PixelBaselines | None,
    folder: Path | None,
) -> tuple[list[EvaluatedProbe], dict[str, Any]]:
    """The evaluated probes, and the figures of the result; with few labels if there is a folder to write to."""
    from monai_diffae.apps.evaluation.baselines import feature_set, z_sem_features
    from monai_diffae.data.embeddings import split_origin
    from monai_diffae.data.progress import track
    from monai_diffae.latents.probing.evaluation import evaluate_probes

    baseline_sets = [feature_set(name, values, table, targets) for name, values in baselines.items()]
    pixel_sets = [] if pixels is None else pixels.read(folder)
    feature_sets = [z_sem_features(table), *baseline_sets, *pixel_sets]
    names = [features.name for features in feature_sets]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"baselines: there are two feature sets called '{name}'; rename one")
    evaluated, omitted = evaluate_probes(
        table,
        track(targets, "probing"),
        feature_sets,
        settings,
        with_few_labels=folder is not None,
        split_origin=split_origin(table),
    )
    num_failed = int((~pixel_sets[0].is_available).sum()) if pixel_sets else 0
    rows = [each.row for each in evaluated]
    return evaluated, {"rows": rows, "omitted_targets": omitted, "num_failed": num_failed}


def _result(figures: Mapping[str, Any], twins: TableTwins, folder: Path | None, skipped: bool) -> ProbeResult:
    for target, reason in figures["omitted_targets"].items():
        logger.warning("target '%s' is omitted: %s", target, reason)
    rows = figures["rows"]
    twins.warn(is_split=all(row["evaluation"] == "split" for row in rows))
    omitted, num_failed = figures["omitted_targets"], figures["num_failed"]
    return ProbeResult(rows, folder, omitted, num_failed, skipped, twins.report.figures())
