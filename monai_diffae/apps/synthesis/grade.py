"""The command ``grade``: the signed distance of every case along a direction."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from monai_diffae import latents
from monai_diffae.apps.command import command
from monai_diffae.apps.record import record_of, run_once
from monai_diffae.apps.result import Result
from monai_diffae.apps.settings import Seed
from monai_diffae.apps.synthesis.fit_direction import read_direction
from monai_diffae.apps.tracking import log_to_open_run
from monai_diffae.data.atomic import write_csv
from monai_diffae.data.fingerprints import file_checksum
from monai_diffae.errors import ConfigError, counted
from monai_diffae.lazy import on_first_use

with on_first_use:
    import numpy as np
    import pandas as pd

    from monai_diffae.apps import table_origin
    from monai_diffae.data import embeddings as tables
    from monai_diffae.latents import targets

logger = logging.getLogger(__name__)


@command
def grade(embeddings: Path, out: Path, *, direction: Path, seed: Seed = 0, overwrite: bool = False) -> Result:
    """Grade every case by its signed distance along a direction, e.g. as a measure of severity.

    ``out`` gets one row per case: ``id``, ``patient``, ``split``, ``distance`` (in standard deviations of the training
    cases; above 0 on the positive side), ``prediction`` (the value; or the probability of the positive class as if both
    were equally frequent, which is no risk of a disease), ``is_fitted`` (whether the direction was fitted to the case),
    and the label if the table has it, with the prefix ``label_`` if it has one of these names.

    Args:
        embeddings: Table of embeddings, written by ``embed`` with the direction's model.
        out: The table of grades, ``.csv``.
        direction: Direction file, written by ``fit-direction``.
        seed: Random seed of the bootstrap over patients.
        overwrite: Replace existing grades.

    Returns:
        The table, and ``scores``: for each split that has the label ``metric``, ``score`` with its 95 % interval
        (``low``, ``high``) and ``num_cases``, of patients that the direction was not fitted to; ``fitted`` is the
        cross-validated score of the others, if the table has some.

    Raises:
        ConfigError: the direction belongs to another model, or ``out`` exists and is no table of grades, or holds
            grades of other inputs.
        CohortError: the table of embeddings cannot be used.
    """
    if out.suffix != ".csv":
        raise ConfigError(f"{out.name}: grades are written as .csv; choose a name that ends in .csv")
    line, table = read_direction(direction), tables.read_embeddings(embeddings)
    table_origin.check_z_sem(embeddings)
    line.check_fits(
        table_origin.origin_of(embeddings)["model"],
        tables.z_matrix(table).shape[1],
        table_origin.recorded_preprocessing(table),
    )
    made_from = {"embeddings": file_checksum(embeddings), "direction": file_checksum(direction), "seed": seed}
    if out.exists() and not record_of(out).exists():
        raise ConfigError(f"{out.name}: exists and was not written by grade; choose another out")

    def make() -> Mapping[str, Any]:
        grades, label = _grade(table, line)
        write_csv(out, grades)
        scores = _scores(grades, label, line, seed)
        log_to_open_run({f"{line.target}_{name}": row["score"] for name, row in scores.items()}, [], "grades")
        return {"scores": scores}

    figures, skipped = run_once("grade", out, [out], made_from, make, overwrite=overwrite)
    notes = []
    for split, row in figures["scores"].items():
        name = "cases that the direction was fitted to, in cross-validation" if split == "fitted" else split
        interval = f"95% interval {row['low']:.3f} to {row['high']:.3f}, {counted(row['num_cases'], 'case')}"
        notes.append(f"{name}: {row['metric']} {row['score']:.3f} ({interval})")
    return Result(out, figures, notes, skipped=skipped)


def _grade(table: pd.DataFrame, direction: latents.Direction) -> tuple[pd.DataFrame, str]:
    """The table of grades, and the name of its label column, which may not exist."""
    grades = table[[name for name in ("id", "patient", "split") if name in table]].copy()
    grades["distance"] = direction.distance(tables.z_matrix(table)) / direction.std
    grades["prediction"] = direction.predict(tables.z_matrix(table))
    grades["is_fitted"] = direction.is_fitted_to(tables.z_matrix(table))
    label = f"label_{direction.target}" if direction.target in grades else direction.target
    if direction.target in table:
        grades[label] = table[direction.target]
    return grades, label


def _scores(grades: pd.DataFrame, label: str, direction: latents.Direction, seed: int) -> dict[str, dict[str, Any]]:
    """How well the distance predicts the label of patients that were not fitted to, for each split that has it."""
    from monai_diffae.latents.probing.scores import score_with_interval

    is_seen = grades["is_fitted"]
    if "patient" in grades:
        is_seen = is_seen | grades["patient"].isin(grades["patient"][is_seen].dropna())
    metric: Literal["auroc", "r2"] = "auroc" if direction.kind == "binary" else "r2"
    scores: dict[str, dict[str, Any]] = {}
    if not is_seen.any():
        logger.warning(
            "none of these cases is one that the direction was fitted to; if their patients are here with other cases, "
            "such as pooled slices or other visits, the scores are too good: grade other patients"
        )
    if is_seen.any() and direction.low is not None:
        ends = {"score": direction.score, "low": direction.low, "high": direction.high}
        scores["fitted"] = {"metric": metric, **ends, "num_cases": direction.num_cases}
    if label not in grades:
        return scores
    labelled = grades[~is_seen & ~targets.missing(grades[label].tolist())]
    labelled = _of_fitted_classes(labelled, label, direction)
    if "id" in labelled:  # the intervals depend on the order of the rows
        labelled = labelled.sort_values("id", kind="stable")
    splits = {"all": labelled} if "split" not in labelled else dict(iter(labelled.groupby("split")))
    for name, rows in splits.items():
        truth = direction.truth(rows[label].tolist())
        if len(np.unique(truth)) < 2:
            continue
        patients = rows["patient"].tolist() if "patient" in rows else None
        predicted = rows["distance" if direction.kind == "binary" else "prediction"].to_numpy()
        score, low, high = score_with_interval(metric, truth, predicted, patients, seed)
        scores[str(name)] = {"metric": metric, "score": score, "low": low, "high": high, "num_cases": len(rows)}
    return scores


def _of_fitted_classes(labelled: pd.DataFrame, label: str, direction: latents.Direction) -> pd.DataFrame:
    """The cases whose class the direction was fitted to; how many others there are is logged."""
    if direction.classes is None or direction.classes[0] == targets.rest_of(direction.classes[1]):
        return labelled
    is_fitted = labelled[label].map(targets.class_name).isin(direction.classes)
    if not is_fitted.all():
        logger.info("%d cases of other classes are graded, but not scored", int((~is_fitted).sum()))
    return labelled[is_fitted]
