"""The command ``reliability``: is z_sem the patient or the scanner?"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from monai_diffae import latents, pictures
from monai_diffae.apps.command import command
from monai_diffae.apps.record import run_once
from monai_diffae.apps.result import Result
from monai_diffae.apps.settings import Seed, Split, Writing
from monai_diffae.apps.study.cases import read_repeated, training_components
from monai_diffae.apps.synthesis.fit_direction import read_direction
from monai_diffae.data.atomic import write_csv
from monai_diffae.data.fingerprints import file_checksum
from monai_diffae.errors import CohortError, ConfigError, counted
from monai_diffae.lazy import on_first_use
from monai_diffae.policies import Features

with on_first_use:
    import numpy as np
    import pandas as pd

    from monai_diffae.apps import table_origin
    from monai_diffae.data import embeddings as tables
    from monai_diffae.latents import statistics, targets

logger = logging.getLogger(__name__)

_CAUSES, _SHARES = ("patient", "scanner", "rest"), ("patient_share", "scanner_share", "rest_share")


@command
def reliability(
    embeddings: Path,
    out: Path,
    *,
    repeat: str,
    scanner: str | None = None,
    features: Features = "z",
    scores: Sequence[str] = (),
    directions: Sequence[Path] = (),
    splits: Sequence[Split] = (),
    seed: Seed = 0,
    writing: Writing = Writing(),
) -> Result:
    """Measure how reliable z_sem is: how much of it is the patient, and how much the scanner.

    ``out/reliability.csv`` has one row per dimension, principal component (of the training cases) and score: ICC(2,1),
    absolute agreement between repeated scans, and ICC(3,1), consistency, with 95 % intervals, of the patients who have
    all of the compared repeats; and the shares of its variance in all scans that are due to the patient, the scanner
    and the rest, which also holds what a scanner does to some patients only. A share below 0 is cut to 0 and marked in
    ``is_negative``.

    Args:
        embeddings: Table of embeddings, written by ``embed``, with a column ``patient``.
        out: Folder for ``reliability.csv`` and the picture.
        repeat: The column that tells the scans of a patient apart, such as the number of the visit.
        scanner: The column with the scanner; by default only patients and the rest are told apart.
        features: ``z`` (z_sem) or ``wide`` (of ``embed --features wide``).
        scores: Columns with numbers to measure as well, such as predictions.
        directions: Direction files of ``fit-direction``, whose scores to measure as well.
        splits: Use the scans of these splits only, e.g. ``val test``.
        seed: Random seed of the bootstrap.

    Returns:
        ``shares``, of patient, scanner and rest in the variance of all features together, each with ``low`` and
        ``high``; ``fingerprinting``, how often the nearest scan is the same patient's, with its interval and
        ``chance``; ``median_icc2`` and ``median_icc3`` of the dimensions; ``num_constant`` and ``num_negative``
        measurements; ``num_patients`` and ``num_repeats`` that the ICCs compare; ``num_scans``, and ``num_omitted``
        scans without a patient, a repeat or a scanner.

    Raises:
        CohortError: the table cannot be used.
        ConfigError: a column does not exist, or the scans do not tell patients and scanners apart.
    """
    rows = read_repeated(embeddings, repeat=[repeat], scanner=[scanner] if scanner else [], scores=scores)
    made_from = {
        "embeddings": file_checksum(embeddings),
        "repeat": repeat,
        "scanner": scanner,
        "features": features,
        "scores": list(scores),
        "directions": [file_checksum(path) for path in directions if path.is_file()],
        "splits": list(splits),
        "seed": seed,
        "dpi": writing.dpi,
    }

    def make() -> Mapping[str, Any]:
        used, num_omitted = _usable(rows, repeat, scanner, splits)
        axes = training_components(rows, features)
        matrix, measures = _measurements(embeddings, used, axes, features, scores, directions)
        measured, figures = _measure(matrix, measures, used, repeat, scanner, seed)
        write_csv(out / "reliability.csv", measured)
        writing.write(out / "reliability.png", pictures.draw_reliability(measured))
        return {**figures, "num_scans": len(matrix), "num_omitted": num_omitted}

    results = [out / "reliability.csv", *writing.files(out / "reliability.png")]
    figures, skipped = run_once("reliability", out, results, made_from, make, overwrite=writing.overwrite)
    return _result(out, figures, features, scanner, skipped)


def _usable(rows: pd.DataFrame, repeat: str, scanner: str | None, splits: Sequence[str]) -> tuple[pd.DataFrame, int]:
    """The scans with a patient, a repeat and a scanner, in the chosen splits, and how many have none."""
    chosen = kept = rows[rows["split"].isin(splits)] if splits and "split" in rows else rows
    for name in ("patient", repeat, *([scanner] if scanner else [])):
        is_missing = targets.missing(kept[name].tolist())
        if num := int(is_missing.sum()):
            logger.warning("%s omitted: the column '%s' is empty", counted(num, "scan"), name)
        kept = kept[~is_missing]
    if kept.empty:
        raise CohortError("reliability: no scan has a patient and a repeat; choose other columns or splits")
    return kept, len(chosen) - len(kept)


def _measurements(
    path: Path,
    rows: pd.DataFrame,
    axes: latents.PrincipalComponents,
    features: Features,
    scores: Sequence[str],
    directions: Sequence[Path],
) -> tuple[statistics.Floats, pd.DataFrame]:
    """The normalised features ``[N, D]`` of the scans, and a table of these, components and scores."""
    columns = tables.z_columns(rows) if features == "z" else tables.wide_columns(rows)
    z = np.ascontiguousarray(tables.matrix(rows, features), np.float64)  # its order decides the last bits
    normalised = np.asarray(axes.statistics.normalise(z), np.float64)
    measures = {("dimension", name): column for name, column in zip(columns, normalised.T, strict=True)}
    measures |= {("component", str(number)): column for number, column in enumerate(axes.coordinates(z).T, start=1)}
    for name in dict.fromkeys(scores):
        values = pd.to_numeric(rows[name], errors="coerce").to_numpy(np.float64)
        if np.isnan(values).any():
            raise ConfigError(f"scores: '{name}' has empty cells or text; give a column with a number for each scan")
        measures["score", name] = values
    for file in directions:
        if file.stem in {name for _, name in measures}:
            raise ConfigError(f"directions: two measurements are called '{file.stem}'; rename the file")
        table_origin.check_z_sem(path)
        z_sem, line = tables.z_matrix(rows), read_direction(file)
        line.check_fits(
            table_origin.origin_of(path)["model"], z_sem.shape[1], table_origin.recorded_preprocessing(rows)
        )
        measures["score", file.stem] = line.distance(z_sem) / line.std
    return normalised, pd.DataFrame(measures)


def _measure(
    z: statistics.Floats, measures: pd.DataFrame, rows: pd.DataFrame, repeat: str, scanner: str | None, seed: int
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The table of results, and the figures."""
    from monai_diffae.latents import reliability as agreement

    patients, repeats = (rows[name].map(targets.class_name).to_numpy(str) for name in ("patient", repeat))
    scanners = None if scanner is None else rows[scanner].map(targets.class_name).to_numpy(str)
    values = measures.to_numpy(np.float64)
    design = agreement.complete_design(patients, repeats)
    varies = np.ptp(values, axis=0) > 1e-9 * np.abs(values).max(axis=0)
    variances = agreement.variance_components(values, patients, scanners)
    is_negative = variances.min(axis=0) < 0
    measured = pd.DataFrame(
        {
            "kind": measures.columns.get_level_values(0),
            "name": measures.columns.get_level_values(1),
            **agreement.intraclass_correlations(values[design]),
            **dict(zip(_SHARES, agreement.variance_shares(variances), strict=True)),
            "is_negative": is_negative,
        }
    )
    measured.loc[~varies, measured.columns[2:-1]] = np.nan
    shares = pd.DataFrame(
        np.transpose(agreement.total_shares(z, patients, scanners)), _CAUSES, ["share", "low", "high"]
    )
    if scanner is None:
        measured, shares = measured.drop(columns="scanner_share"), shares.drop("scanner")
    dimensions = measured[measured["kind"] == "dimension"]
    return measured, {
        "shares": shares.replace({np.nan: None}).to_dict("index"),
        "fingerprinting": asdict(agreement.fingerprinting(z, patients, repeats, seed)),
        "median_icc2": float(dimensions["icc2"].median()),
        "median_icc3": float(dimensions["icc3"].median()),
        "num_constant": int((~varies).sum()),
        "num_negative": int((is_negative & varies).sum()),
        "num_patients": len(design),
        "num_repeats": design.shape[1],
        "num_compared": design.size,
    }


def _result(out: Path, figures: Mapping[str, Any], features: str, scanner: str | None, skipped: bool) -> Result:
    """The result, with its summary in sentences."""
    names = {"patient": "the patient", "scanner": "the scanner", "rest": "neither" if scanner else "not the patient"}
    parts = [f"{_share(row)} is {names[cause]}" for cause, row in figures["shares"].items()]
    found, omitted = figures["fingerprinting"], figures["num_omitted"]
    own = _share({**found, "share": found["rate"]})
    notes = [
        f"Of the variance of {'z_sem' if features == 'z' else 'the wide features'}, {', '.join(parts)}.",
        f"The nearest scan is the same patient's for {own}; by chance, it would be for {100 * found['chance']:.2g}%.",
        f"Median ICC(2,1) {figures['median_icc2']:.2f}, ICC(3,1) {figures['median_icc3']:.2f}: "
        f"{counted(figures['num_patients'], 'patient')} with {figures['num_repeats']} repeats each "
        f"({figures['num_compared']} of {counted(figures['num_scans'], 'scan')}).",
    ]
    if num := figures["num_constant"]:
        notes.append(f"{counted(num, 'measurement')} without any variation: no reliability.")
    if num := figures["num_negative"]:
        notes.append(f"A variance of {counted(num, 'measurement')} was estimated below 0 and counts as 0.")
    incomplete = f"{counted(omitted, 'scan')} omitted: no patient, repeat or scanner" if omitted else None
    return Result(out, figures, notes, incomplete, skipped=skipped)


def _share(row: Mapping[str, Any]) -> str:
    ends = "" if row["low"] is None else f" (95% interval {row['low']:.1%} to {row['high']:.1%})"
    return f"{row['share']:.1%}{ends}"
