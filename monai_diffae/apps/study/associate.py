"""The command ``associate``: which principal components of z_sem go with which variables."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from cyclopts import Group, Parameter
from rich import box
from rich.table import Table

from monai_diffae import pictures
from monai_diffae.apps.command import command
from monai_diffae.apps.commands import command_line, find_command
from monai_diffae.apps.record import run_once
from monai_diffae.apps.result import Result, table_lines
from monai_diffae.apps.settings import NONE_GIVEN, LabelKinds, Writing
from monai_diffae.apps.study.cases import StudyCases, StudyChoice
from monai_diffae.apps.tracking import log_to_open_run
from monai_diffae.data.atomic import write_atomic, write_csv
from monai_diffae.data.fingerprints import file_checksum
from monai_diffae.errors import ConfigError, check_installed, counted
from monai_diffae.lazy import on_first_use

with on_first_use:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

    from monai_diffae.data import embeddings as tables
    from monai_diffae.latents import association, statistics, targets

logger = logging.getLogger(__name__)

_LEVEL = 0.05
_MOST_PICTURED, _MOST_SHOWN = 6, 10
_LEAST_PATIENTS = 5  # of a class, if there are more than two
_PHENOTYPES, _COVARIATES = "phenotypes.tsv", "phenotype_covariates.tsv"


@Parameter(name="*", group=Group("Phenotypes", sort_key=4))
@dataclass(frozen=True)
class Phenotypes:
    """The components as phenotypes for PLINK and REGENIE, with one row per patient."""

    phenotypes: bool = False
    """Also write ``phenotypes.tsv`` and, with covariates, ``phenotype_covariates.tsv``."""
    iid: str = "patient"
    """The column with the names of the genotypes' files, such as ``eid``; it becomes FID and IID."""
    scans: Literal["first", "mean"] = "first"
    """Of a patient with several scans, use the ``first`` one of the table, or their ``mean``."""


@command
def associate(
    embeddings: Path,
    out: Path,
    *,
    variables: Sequence[str] = (),
    covariates: Sequence[str] = (),
    kinds: LabelKinds = NONE_GIVEN,
    choice: StudyChoice = StudyChoice(),
    logistic: bool = False,
    rank_normal: bool = False,
    export: Phenotypes = Phenotypes(),
    bundle: Path | None = None,
    writing: Writing = Writing(),
) -> Result:
    """Find which principal components of z_sem go with which variables, beside covariates.

    The components are those of the training cases. Each is regressed on each variable and all covariates (least
    squares). Errors are clustered by patient, and corrected for few patients and rare classes (CR2, Satterthwaite).
    q-values (Benjamini-Hochberg) are over all tests of this call.

    ``out/associations.csv`` has one row per variable and component. ``effect``, from ``low`` to ``high`` (95 %), is in
    standard deviations of the component (of the training cases): per standard deviation of a number, or from the first
    to the second of two classes. Variables with more classes have one F test and no effect. Of these, classes of
    fewer than 5 patients are left out, and with fewer than 10 patients per pair of classes, p is from 10,000
    permutations of the patients, so at least .0001. ``share`` is the partial R2. With ``logistic``, the effect on two
    classes is the log odds ratio per standard deviation of the component. ``num_missing`` cases without the variable or
    a covariate, or of such a class, are left out. ``out/associations.png`` shows all p-values.

    Args:
        embeddings: Table of embeddings, written by ``embed``.
        out: Folder for the results.
        variables: Label columns; by default all that ``probe`` would predict.
        covariates: Label columns that every regression contains.
        kinds: Whether labels are ``classes`` or ``numbers``, e.g. ``grade=numbers``; by default as in ``probe``.
        logistic: Logistic regression for variables with two classes; needs the extra ``statistics``.
        rank_normal: Replace each component by normal quantiles of its ranks, here and in ``phenotypes``.
        bundle: The bundle that made the embeddings, to decode what the first associated components change, into
            ``out/traversed``; by default there are no pictures.

    Returns:
        The folder; ``num_tests``, ``num_significant`` (q < .05), ``strongest`` (the rows with the smallest p), and
        ``omitted_variables``, which cannot be used, with the reasons.

    Raises:
        CohortError: the table cannot be used.
        ConfigError: a variable or covariate does not exist or no variable can be used.
        MachineError: statsmodels is not installed, and ``logistic`` is set.
    """
    if logistic:
        check_installed("statsmodels", "statistics")
    cases = StudyCases.open(embeddings, choice)
    names = _variables(cases.rows, variables, covariates)
    if export.phenotypes:
        _check_names(cases, export.iid)
    made_from = {
        "embeddings": file_checksum(embeddings),
        "variables": names,
        "covariates": list(covariates),
        "kinds": dict(kinds),
        "components": len(cases.axes.stds),
        "split": choice.split,
        "logistic": logistic,
        "rank_normal": rank_normal,
        "export": asdict(export),
        "dpi": writing.dpi,
    }
    analysis = _Analysis(cases, names, list(covariates), dict(kinds), logistic, rank_normal)
    files = [_PHENOTYPES, *([_COVARIATES] if covariates else [])] if export.phenotypes else []
    results = [out / "associations.csv", *writing.files(out / "associations.png"), *(out / name for name in files)]
    make = functools.partial(analysis.run, out, export, writing)
    figures, skipped = run_once("associate", out, results, made_from, make, overwrite=writing.overwrite)
    found = figures["components"][:_MOST_PICTURED]
    images = {
        "bundle": bundle or Path("my_bundle"),
        "embeddings": embeddings,
        "out": out / "traversed",
        "show": "components",
        "components": sorted(found),
    }
    if found and bundle is not None:
        find_command("decode").load()(**images, overwrite=writing.overwrite)
    following = [f"next: {command_line('decode', images)}"] if found and bundle is None else []
    omitted = figures["omitted_variables"]
    incomplete = f"{counted(len(omitted), 'variable')} omitted: {', '.join(omitted)}" if omitted else None
    return Result(out, figures, [*_notes(figures)], incomplete, following, skipped)


def _variables(rows: pd.DataFrame, variables: Sequence[str], covariates: Sequence[str]) -> list[str]:
    labels = tables.check_labels(rows, {"variables": variables, "covariates": covariates})
    if both := set(variables) & set(covariates):
        raise ConfigError(f"covariates: '{min(both)}' is a variable, too; omit it from one of them")
    names = list(dict.fromkeys(variables)) or [
        name for name in labels if name not in covariates and targets.reason_against(rows[name].tolist(), name) is None
    ]
    if not names:
        raise ConfigError("variables: the table has no label that could be one; embed a cohort with labels")
    return names


@dataclass(frozen=True, eq=False)
class _Analysis:
    """The regressions of one call."""

    cases: StudyCases
    variables: Sequence[str]
    covariates: Sequence[str]
    kinds: Mapping[str, Any]
    logistic: bool
    rank_normal: bool

    def run(self, out: Path, export: Phenotypes, writing: Writing) -> dict[str, Any]:
        """Write the results, and return their figures."""
        parts, omitted = [], {}
        for name in self.variables:
            try:
                parts.append(self._rows(name))
            except ConfigError as error:
                omitted[name] = str(error).removeprefix(f"target '{name}': ")
                logger.warning("variable '%s' is omitted: %s", name, omitted[name])
        if not parts:
            name, reason = next(iter(omitted.items()))
            raise ConfigError(f"variables: none can be used; {name}: {reason}")
        rows = pd.concat(parts, ignore_index=True)
        rows.insert([*rows].index("p") + 1, "q", association.q_values(rows["p"]))
        if num_unknown := int(rows["p"].isna().sum()):
            logger.warning(
                "%s without estimate (constant component, or classes that are separated): see associations.csv",
                counted(num_unknown, "test"),
            )
        write_csv(out / "associations.csv", rows)
        writing.write(out / "associations.png", pictures.draw_associations(rows, _LEVEL))
        if export.phenotypes:
            self._export(out, export)
        log_to_open_run({}, [out / "associations.png"], "associations")
        ranked = rows.sort_values("p", kind="stable")
        significant = ranked[ranked["q"] < _LEVEL]
        return {
            "num_tests": int(rows["p"].notna().sum()),
            "num_significant": len(significant),
            "components": [int(number) for number in dict.fromkeys(significant["component"])],
            "by_variable": {str(name): int((each["q"] < _LEVEL).sum()) for name, each in rows.groupby("variable")},
            "strongest": ranked.head(_MOST_SHOWN).replace({np.nan: None}).to_dict("records"),
            "omitted_variables": omitted,
        }

    def _rows(self, name: str) -> pd.DataFrame:
        """The rows of the table about one variable."""
        scores, rows = self._scores, self.cases.rows
        targets = [self._target(each) for each in (name, *self.covariates)]
        kept = functools.reduce(np.intersect1d, [each.rows for each in targets])
        variable, *others = [each.only(np.isin(each.rows, kept)) for each in targets]
        is_large = _is_large(variable, self.cases.patients[kept])
        kept, variable, *others = kept[is_large], *(each.only(is_large) for each in (variable, *others))
        if len(kept) == 0:
            raise ConfigError(
                f"no case has it and all covariates, or each class has fewer than {_LEAST_PATIENTS} patients"
            )
        covariates = {each.name: _design(each) for each in others}
        patients, classes = self.cases.patients[kept], variable.classes or ()
        scale = 1.0 if classes else float(variable.values.std()) or 1.0
        is_logistic = self.logistic and len(classes) == 2
        found = (
            association.logistic_associations(scores[kept], variable.values, covariates, patients)
            if is_logistic
            else association.linear_associations(scores[kept], _design(variable) / scale, covariates, patients)
        )
        contrast = f"{len(classes)} classes" if classes else f"per {scale:.4g}"
        contrast = f"{classes[1]} - {classes[0]}" if len(classes) == 2 else contrast
        return pd.DataFrame(
            {
                "variable": name,
                "contrast": contrast,
                "model": "logistic" if is_logistic else "linear",
                "component": range(1, scores.shape[1] + 1),
                "explained": self.cases.axes.explained,
                **asdict(found),
                "num_cases": len(kept),
                "num_patients": len(np.unique(patients)),
                "num_missing": len(rows) - len(kept),
            }
        )

    @functools.cached_property
    def _scores(self) -> statistics.Floats:
        return association.rank_normal(self.cases.scores) if self.rank_normal else self.cases.scores

    def _target(self, name: str) -> targets.Target:
        return targets.read_target(self.cases.rows[name].tolist(), name, kind=self.kinds.get(name, "auto"))

    def _export(self, out: Path, export: Phenotypes) -> None:
        """Write the components and covariates of each patient as PLINK and REGENIE read them."""
        names = _genotype_names(self.cases.rows[export.iid])
        frames = {_PHENOTYPES: pd.DataFrame(self.cases.scores).rename(columns=lambda number: f"PC{number + 1}")}
        if self.covariates:
            frames[_COVARIATES] = pd.concat([self._covariate(each) for each in self.covariates], axis=1)
        for file, frame in frames.items():
            grouped = frame.groupby(names, sort=False)
            values = grouped.mean() if export.scans == "mean" else grouped.nth(0).set_axis(names.dropna().unique())
            if file == _PHENOTYPES and self.rank_normal:
                values = pd.DataFrame(association.rank_normal(values), values.index, values.columns)
            values = values.rename_axis("IID").reset_index()
            values.insert(0, "FID", values["IID"])
            text = values.to_csv(sep="\t", index=False, na_rep="NA", float_format="%.8g")
            write_atomic(out / file, lambda path, text=text: path.write_text(text))  # type: ignore[misc]
        logger.info(
            "%s: %s, the %s of the scans of each; left out without %s: %s",
            _PHENOTYPES,
            counted(names.nunique(), "patient"),
            export.scans,
            export.iid,
            counted(names.isna().sum(), "case"),
        )

    def _covariate(self, name: str) -> pd.DataFrame:
        """The columns of a covariate, without blanks in their names."""
        target = self._target(name)
        labels = [name] if target.classes is None else [f"{name}_{each}" for each in target.classes[1:]]
        columns = ["_".join(label.split()) for label in labels]
        return pd.DataFrame(_design(target), target.rows, columns).reindex(range(len(self.cases.rows)))


def _genotype_names(values: pd.Series[Any]) -> pd.Series[Any]:
    """Names as text; missing ones are None."""
    return values.map(targets.class_name).mask(targets.missing(values.tolist()), None)


def _check_names(cases: StudyCases, iid: str) -> None:
    """Refuse names that PLINK cannot read, or that are not those of the patients, one each."""
    if iid not in cases.rows:
        raise ConfigError(f"iid: the table has no column '{iid}'; choose a label column, patient or id")
    if iid == "patient" and tables.patient_key_name(cases.rows) is not None:
        raise ConfigError("iid: the column patient has hashes, not names; choose the column that the genotypes know")
    names = _genotype_names(cases.rows[iid])
    if num := int(names.dropna().str.contains(r"\s").sum()):
        text = f"iid: {counted(num, 'value')} of '{iid}' have blanks, which end a name in PLINK; replace them"
        raise ConfigError(text)
    pairs = pd.DataFrame({"name": names, "patient": cases.patients}).dropna().drop_duplicates()
    for one, several in (("name", "patient"), ("patient", "name")):
        if num := int(pairs[one].duplicated().sum()):
            raise ConfigError(f"iid: '{iid}' has one {one} for several {several}s, {num} times; choose another column")


def _is_large(variable: targets.Target, patients: npt.NDArray[np.str_]) -> npt.NDArray[np.bool_]:
    """Whether the class of each case, if there are more than two, has enough patients; the others are logged."""
    counts = variable.patients_of_classes(patients)
    if len(counts) < 3:
        return np.ones(len(patients), bool)
    if small := [name for name, count in counts.items() if count < _LEAST_PATIENTS]:
        logger.warning(
            "variable '%s': classes of fewer than %d patients are left out: %s; join them to keep them",
            variable.name,
            _LEAST_PATIENTS,
            ", ".join(small),
        )
    return np.array([*counts.values()])[variable.values] >= _LEAST_PATIENTS


def _design(target: targets.Target) -> statistics.Floats:
    """Numbers as a column; for classes, a column for each but the first."""
    if target.classes is None:
        return np.asarray(target.values, np.float64)[:, None]
    return np.eye(len(target.classes))[target.values][:, 1:]


def _notes(figures: Mapping[str, Any]) -> list[str]:
    table = Table("variable", "contrast", "component", "effect (95 % interval)", "p", "q", box=box.SIMPLE_HEAD)
    for row in figures["strongest"]:
        effect = "" if row["effect"] is None else "{effect:.3f} ({low:.3f}, {high:.3f})".format(**row)
        p, q = ("" if row[name] is None else f"{row[name]:.2g}" for name in ("p", "q"))
        table.add_row(row["variable"], row["contrast"], str(row["component"]), effect, p, q)
    counts = ", ".join(f"{name} {number}" for name, number in figures["by_variable"].items())
    found = f"{figures['num_significant']} of {counted(figures['num_tests'], 'test')} with q < {_LEVEL}: {counts}"
    return [found, *table_lines(table)]
