"""The command ``harmonize``: remove the scanner from a table of embeddings, and measure what that costs."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from cyclopts import Group, Parameter

from monai_diffae.apps.command import command
from monai_diffae.apps.record import run_once
from monai_diffae.apps.result import Result
from monai_diffae.apps.settings import Seed
from monai_diffae.apps.study.cases import read_repeated
from monai_diffae.data.atomic import write_atomic, write_csv
from monai_diffae.data.fingerprints import file_checksum, json_digest
from monai_diffae.errors import ConfigError, counted
from monai_diffae.lazy import on_first_use
from monai_diffae.policies import Features

with on_first_use:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

    from monai_diffae.data import embeddings as tables
    from monai_diffae.latents import harmonization
    from monai_diffae.latents import targets as labels

logger = logging.getLogger(__name__)

_NEARLY_COLLINEAR = 0.8  # the association from which nine of ten labels without an effect get one (240 patients)
_COSTS = [
    "target",
    "is_protected",
    "association",
    "metric",
    "before",
    "after",
    "difference",
    "difference_low",
    "difference_high",
]


@Parameter(name="*", group=Group("Costs", sort_key=3))
@dataclass(frozen=True)
class Costs:
    """How it is measured what that costs."""

    targets: Sequence[str] = ()
    """Label columns to probe before and after; by default those that ``probe`` predicts."""
    seed: Seed = 0
    """Random seed of folds and bootstrap."""


@command
def harmonize(
    embeddings: Path,
    out: Path,
    *,
    scanner: str,
    protect: Sequence[str] = (),
    costs: Costs = Costs(),
    overwrite: bool = False,
) -> Result:
    """Remove the scanner from z_sem (ComBat, CovBat), and measure what that costs the labels.

    Every dimension (also standard deviations and wide features) gets the same mean and variance on all scanners, and
    the leading components, one for every 8 training cases of the smallest scanner, nearly the same covariances. All is
    fitted to the training cases (all cases if the table has no split), at least 10 of each scanner, and applied to all.
    It also removes differences between the patients of the scanners, except for what the protected columns explain. A
    protected column that is associated with the scanner gets an effect that it does not have (Nygaard et al. 2016,
    doi:10.1093/biostatistics/kxv027): from an association of .3 (Cramer's V or correlation ratio) there is a warning,
    and ``probe`` then calls no label predicted; above .8 it is refused. ``probe --harmonize`` protects nothing.

    The new table is for ``probe``, ``neighbors`` and statistics; commands that decode refuse it. Beside it,
    ``<name>_costs.csv`` has the scores of probes before and after, and ``<name>_omitted.csv`` the cases that could not
    be harmonized, with the reasons. In cross-validation, it is fitted in every fold, but the values of protected
    columns are used for all cases, so their scores after may be too high.

    Args:
        embeddings: Table of embeddings, written by ``embed``.
        out: The new table, ``.parquet``.
        scanner: The column with the scanner.
        protect: Columns whose effect on z_sem to keep, such as age and sex.
        overwrite: Replace an existing table.

    Returns:
        The table; ``scanners``, balanced accuracy with which a probe tells the scanner ``before`` and ``after``, with
        intervals and ``chance``; ``costs``, one row per target: its ``association`` with the scanner, ``metric``,
        ``before``, ``after``, and their ``difference`` with its interval; ``num_cases``, ``num_fitted`` and
        ``num_omitted`` cases.

    Raises:
        CohortError: the table cannot be used.
        ConfigError: a column does not exist, or scanners cannot be told from patients or protected columns.
    """
    if out.suffix != ".parquet":
        raise ConfigError(f"{out.name}: must be a .parquet file, which says what was done; choose such a name")
    rows = read_repeated(embeddings, scanner=[scanner], protect=protect, targets=costs.targets)
    done = {
        "embeddings": file_checksum(embeddings),
        "scanner": scanner,
        "protect": list(protect),
        "method": "CovBat",
    }
    metadata = rows.attrs.get("monai_diffae", {})
    origin = metadata.get("made_from", {})
    # another model, so that these cases are never compared with others that were not harmonized
    made_from = {**origin, "model": json_digest([origin.get("model"), done]), "encoder": "harmonized", **done}
    made_from["source_encoder"] = tables.source_encoder(rows)
    settings = {**made_from, "targets": list(costs.targets), "seed": costs.seed}
    names = {name: out.with_name(f"{out.stem}_{name}.csv") for name in ("costs", "omitted")}

    def make() -> Mapping[str, Any]:
        cases, omitted = _Cases.of(rows, scanner, protect)
        new = cases.harmonized()
        scores, figures = _costs(cases, costs)
        figures["has_wide"] = bool(tables.wide_columns(new))
        figures |= {"num_cases": len(new), "num_fitted": int(cases.is_fitted.sum()), "num_omitted": len(omitted)}
        confounded = [*tables.confounded(rows), *cases.confounded]  # a table may be harmonized twice
        description = {**done, "num_fitted": figures["num_fitted"]}
        origin = {**made_from, "confounded": confounded}
        new.attrs["monai_diffae"] = {**metadata, "made_from": origin, "harmonized": description}
        write_csv(names["costs"], scores)
        write_csv(names["omitted"], omitted)
        write_atomic(out, lambda path: new.to_parquet(path, index=False))
        return figures

    figures, skipped = run_once("harmonize", out, [out, *names.values()], settings, make, overwrite=overwrite)
    num = figures["num_omitted"]
    incomplete = f"{counted(num, 'case')} omitted: see {names['omitted'].name}" if num else None
    return Result(out, figures, _notes(figures, scanner), incomplete, skipped=skipped)


@dataclass(frozen=True, eq=False)
class _Cases:
    """The cases that can be harmonized, with their scanners and covariates."""

    rows: pd.DataFrame
    scanner: str  # its column
    protect: Sequence[str]  # columns
    scanners: npt.NDArray[np.str_]
    covariates: npt.NDArray[np.float64]
    is_fitted: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, rows: pd.DataFrame, scanner: str, protect: Sequence[str]) -> tuple[_Cases, pd.DataFrame]:
        """The cases that can be harmonized, and a table of the others with the reasons."""
        reasons = np.full(len(rows), "", object)
        for name in (scanner, *protect):
            reasons[labels.missing(rows[name].tolist()) & (reasons == "")] = f"{name} is empty"
        names, is_train = _class_names(rows[scanner]), np.isin(tables.splits_of(rows), ("train", "new"))
        covariates = [_covariate(rows[name], is_train, reasons) for name in protect]
        counts = pd.Series(names[is_train & (reasons == "")]).value_counts()
        few = np.array([counts.get(name, 0) < harmonization.LEAST_FITTED for name in names])
        reasons[few & (reasons == "")] = f"its scanner has fewer than {harmonization.LEAST_FITTED} training cases"
        kept = reasons == ""
        if not kept.any():
            raise ConfigError("harmonize: no case has a scanner with training cases and all protected columns")
        omitted = pd.DataFrame({"id": rows["id"], "scanner": names, "reason": reasons})[~kept]
        for (owner, reason), part in omitted.groupby(["scanner", "reason"]):
            of_scanner = "" if reason == f"{scanner} is empty" else f" of the scanner '{owner}'"
            logger.warning("%s%s omitted: %s", counted(len(part), "case"), of_scanner, reason)
        matrix = np.hstack([np.empty((len(rows), 0)), *covariates])[kept]
        cases = cls(rows[kept].reset_index(drop=True), scanner, protect, names[kept], matrix, is_train[kept])
        cases.check()
        return cases, omitted

    def check(self) -> None:
        """Check that scanners and patients are not the same, and log what cannot be told apart."""
        pairs = pd.DataFrame({"scanner": self.scanners, "patient": self.rows["patient"].astype(str)})
        patients = pairs[self.is_fitted].groupby("scanner")["patient"].nunique()
        if patients.min() < 2:
            raise ConfigError(
                f"scanner: '{patients.idxmin()}' has training cases of one patient, so harmonizing would "
                "remove this patient; add patients, or leave the scanner out"
            )
        if (pairs.drop_duplicates()["patient"].value_counts() < 2).all():
            logger.warning(
                "no patient was scanned on two scanners: differences between the patients of the scanners "
                "are removed, too, except for what the protected columns explain"
            )
        if num := self.num_on_both_sides:
            logger.warning(
                "%s with training and other cases: what ComBat is fitted to is not independent of their "
                "other cases, and targets are cross-validated",
                counted(num, "patient"),
            )

        for name, value in self.confounded.items():
            text = f"protect: '{name}' is associated with the scanner ({value:.2f}), so "
            if value > _NEARLY_COLLINEAR:
                raise ConfigError(
                    f"{text}harmonizing would create a false effect of it; do not protect it, or use probe --harmonize"
                )
            logger.warning("%san effect of it may be an artefact (Nygaard 2016); compare with probe --harmonize", text)

    @cached_property
    def confounded(self) -> dict[str, float]:
        """The protected columns that are associated with the scanner in the training cases, and how closely."""
        return {name: value for name in self.protect if (value := self.association(name)) >= harmonization.CONFOUNDED}

    def association(self, name: str) -> float:
        """How closely a label is associated with the scanner in the training cases; NaN if it does not vary."""
        kept = self.is_fitted & ~labels.missing(self.rows[name].tolist())
        design = _covariate(self.rows[name], kept, np.where(kept, "", "-").astype(object))[kept]
        return harmonization.association(design, self.scanners[kept], self.rows["patient"][kept].tolist())

    @property
    def num_on_both_sides(self) -> int:
        """The number of patients with cases that ComBat is fitted to, and with others."""
        patients = self.rows["patient"].astype(str)
        return len(set(patients[self.is_fitted]) & set(patients[~self.is_fitted]))

    def columns(self, features: Features) -> list[str]:
        """The columns that are harmonized together; those of z_sem come with its standard deviations."""
        if features == "wide":
            return tables.wide_columns(self.rows)
        return tables.z_columns(self.rows) + tables.std_columns(self.rows)

    def values(self, features: Features, fitted: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
        """These columns, harmonized by what is fitted to these positions."""
        return harmonization.harmonized(
            self.rows[self.columns(features)].to_numpy(np.float64),
            self.scanners,
            self.covariates,
            fitted,
            common_scale=tables.has_common_scale(self.rows, features),
        )

    def harmonized(self) -> pd.DataFrame:
        """The rows with harmonized features, without the columns of a map, which are those of other features."""
        new = self.rows.drop(columns=[*(tables.MAP_COLUMNS if "thumbnail" in self.rows else ())])
        for features in get_args(Features):
            if columns := self.columns(features):
                new[columns] = self.values(features, np.flatnonzero(self.is_fitted)).astype(np.float32)
        return new


def _class_names(column: pd.Series[Any]) -> npt.NDArray[np.str_]:
    return np.array([labels.class_name(value) for value in column])


def _covariate(
    column: pd.Series[Any], is_train: npt.NDArray[np.bool_], reasons: npt.NDArray[Any]
) -> npt.NDArray[np.float64]:
    """A protected column as numbers ``[N, C]``: itself, or one column per class but one; cases may get a reason."""
    present = reasons == ""
    if not labels.are_classes(column[present].tolist()):
        return pd.to_numeric(column, errors="coerce").to_numpy(np.float64)[:, None]
    names = _class_names(column)
    classes = np.unique(names[present & is_train])
    reasons[present & ~np.isin(names, classes)] = f"no training case has its value of {column.name}"
    return (names[:, None] == classes[1:]).astype(np.float64)


def _costs(cases: _Cases, settings: Costs) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The scores of probes before and after, as a table and as figures."""
    from monai_diffae.latents.probing import FeatureSet, ProbeSettings, evaluate_probes

    rows, scanner = cases.rows, cases.scanner
    codes = rows[cases.columns("z")].to_numpy(np.float32)
    before = FeatureSet.from_values("before", codes, standardise=False)
    features = [replace(before, name="after", extract=lambda train: cases.values("z", train)), before]
    chosen = settings.targets or [
        name
        for name in tables.label_columns(rows)
        if name != scanner and labels.reason_against(rows[name].tolist(), name) is None
    ]
    evaluation: Literal["cv"] | None = "cv" if cases.num_on_both_sides else None
    both = ProbeSettings(evaluation, seed=settings.seed, kinds={scanner: "classes"})
    linear, origin = replace(both, probes=("linear",), kinds={}), tables.split_origin(rows)
    told, _ = evaluate_probes(rows, [scanner], features, both, split_origin=origin)
    probes, omitted = evaluate_probes(rows, chosen, features, linear, split_origin=origin) if chosen else ([], {})
    scores = pd.DataFrame([probe.row for probe in [*told, *probes]])
    ends = {"score": "", "low": "_low", "high": "_high"}
    accuracies = {
        f"{row['features']}_{row['probe']}": {name: row[f"balanced_accuracy{end}"] for name, end in ends.items()}
        for row in (probe.row for probe in told)
    }
    costs = scores[(scores["features"] == "before") & (scores["target"] != scanner)]
    after = costs["score"] + costs["difference"]
    names = costs["target"]
    costs = costs.assign(
        is_protected=names.isin(cases.protect),
        association=names.map(cases.association),
        before=costs["score"],
        after=after,
    )
    return scores, {
        "scanners": {"chance": 1 / len(np.unique(cases.scanners)), **accuracies},
        "costs": json.loads(costs[_COSTS].to_json(orient="records")),
        "omitted_targets": omitted,
    }


def _notes(figures: Mapping[str, Any], scanner: str) -> list[str]:
    """What was achieved and what it cost, in sentences."""
    notes, chance = [], figures["scanners"]["chance"]
    for probe in ("linear", "knn"):
        then, now = (
            "{score:.2f} ({low:.2f} to {high:.2f})".format(**figures["scanners"][f"{when}_{probe}"])
            for when in ("before", "after")
        )
        notes.append(f"{scanner} ({probe}): balanced accuracy {then} before, {now} after; chance is {chance:.2f}.")
    for row in figures["costs"]:
        line = "{target}: {metric} {before:.3f} before, {after:.3f} after: {difference:+.3f}".format(**row)
        if row["difference_low"] is not None:
            line += " ({difference_low:+.3f} to {difference_high:+.3f})".format(**row)
        if (row["association"] or 0) >= harmonization.CONFOUNDED:
            line += (
                "; it is associated with the scanner ({association:.2f}), so what is lost may be the scanner".format(
                    **row
                )
            )
        notes.append(f"{line}{'; protected, so it may be too high' if row['is_protected'] else ''}")
    notes += [f"{target}: not probed: {reason}" for target, reason in figures["omitted_targets"].items()]
    if figures["has_wide"]:
        notes.append(f"all measured with z_sem; for the wide features: probe --features wide --nuisance {scanner}")
    return [*notes, "in brackets: 95% intervals over patients"]
