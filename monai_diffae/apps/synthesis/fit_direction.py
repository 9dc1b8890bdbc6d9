"""Directions in z_sem for a label: fitting one to a table of embeddings, and grading a cohort by it."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from monai_diffae.apps.embedding.tables import model_of
from monai_diffae.apps.results import log_to_open_run, run_once
from monai_diffae.bundle.checksums import file_checksum
from monai_diffae.data.atomic import write_atomic, write_json
from monai_diffae.data.embeddings import label_columns, read_embeddings, training_rows, z_of
from monai_diffae.errors import ConfigError
from monai_diffae.latents import Direction
from monai_diffae.latents import fit_direction as fit
from monai_diffae.latents.direction_content import FORMAT
from monai_diffae.latents.probing.scores import score_with_interval
from monai_diffae.latents.targets import class_name, missing, rest_of

logger = logging.getLogger(__name__)


def fit_direction(
    embeddings: str | os.PathLike[str],
    target: str,
    out: str | os.PathLike[str],
    *,
    positive: str | None = None,
    max_cases: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Direction:
    """Fit the direction in which z_sem says more of a label, and write it to a file.

    Fitted to the training cases alone, where the table has a split. Cases without the label are left out and counted.

    Args:
        embeddings: ``embeddings.parquet``.
        target: a label column: two classes (logistic regression), or numbers (ridge regression).
        out: the file, ``.json``.
        positive: the class that the direction points to; the larger or later one when None. With more than two classes
            it is set against all others.
        max_cases: only so many labelled cases, of all classes alike: for few-shot sampling.
        seed: of the folds of the cross-validation, and of the choice of ``max_cases``.
        overwrite: write it anew although there is another direction.

    Raises:
        CohortError: no table of embeddings, or one with splits and without training cases.
        ConfigError: no such label column, one class only, too few cases, or ``out`` is there already.

    Example:
        >>> fit_direction("no.parquet", "age", "age.json")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.CohortError: no.parquet: there is no such file; make it with monai-diffae embed
    """
    path = Path(out)
    if path.suffix != ".json":
        raise ConfigError(f"{path.name}: a direction is written as .json; name such a file")
    if path.exists() and not _is_direction(_content_of(path)):
        raise ConfigError(f"{path.name}: is there already, and is no direction; name another --out")
    table = training_rows(embeddings)
    labels = label_columns(table)
    if target not in labels:
        raise ConfigError(f"target: there is no label column '{target}'; choose from: {', '.join(labels) or 'none'}")
    groups = table["patient"].tolist() if "patient" in table else None
    direction = fit(
        z_of(table), table[target].tolist(), target=target, model=model_of(embeddings), groups=groups,
        positive=positive, max_cases=max_cases, seed=seed,
    )  # fmt: skip
    content = direction.to_json()
    if path.exists() and not overwrite and _content_of(path) != content:
        raise ConfigError(f"{path.name}: is there already, with something else; say --overwrite or name another --out")
    if direction.num_left_out:
        logger.info("%d cases without the label '%s' were left out", direction.num_left_out, target)
    write_json(path, content)
    log_to_open_run({f"{target}_score": direction.score}, [], "directions")
    return direction


def read_direction(path: str | os.PathLike[str]) -> Direction:
    """Read a file of :func:`fit_direction`.

    Raises:
        ConfigError: it is not there, or no such file.
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"{path.resolve().name}: is a folder; name the direction's file in it")
    if not path.is_file():
        raise ConfigError(f"{path.name}: there is no such file; make it with monai-diffae fit-direction")
    content = _content_of(path)
    if content is None:
        raise ConfigError(f"{path.name}: this is no direction; make it with monai-diffae fit-direction")
    try:
        return Direction.from_json(content)
    except ConfigError as error:
        raise ConfigError(f"{path.name}: {error}") from error


def _content_of(path: Path) -> Any:
    """What a JSON file holds; None of another file."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _is_direction(content: Any) -> bool:
    return isinstance(content, dict) and content.get("format") == FORMAT


@dataclass(frozen=True)
class GradeResult:
    """What :func:`grade` made.

    Attributes:
        path: the table.
        scores: by split, where the table has the label: AUROC or R2 with its 95% interval (``score, low, high``).
        skipped: whether it was there already.
    """

    path: Path
    scores: dict[str, dict[str, Any]]
    skipped: bool = False


def grade(
    embeddings: str | os.PathLike[str],
    direction: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    seed: int = 0,
    overwrite: bool = False,
) -> GradeResult:
    """The severity of every case: its signed distance from a direction's plane (hyperplane grading).

    ``out`` gets a row a case: ``id``, ``patient``, ``split``, ``distance`` (in standard deviations of the training
    cases; above 0 on the positive side), ``prediction`` (the probability of the positive class, or the value), and the
    label itself where the table has it, ``label_`` before its name if that is one of these.

    Args:
        embeddings: ``embeddings.parquet``, made with the direction's model.
        direction: a file of :func:`fit_direction`.
        out: the table, ``.csv``.
        seed: of the bootstrap over patients.
        overwrite: make it anew although there are other grades.

    Raises:
        ConfigError: a direction of another model, or ``out`` holds another result.
        CohortError: no table of embeddings.
    """
    path = Path(out)
    if path.suffix != ".csv":
        raise ConfigError(f"{path.name}: the grades are written as .csv; name such a file")
    chosen, table = read_direction(direction), read_embeddings(embeddings)
    z_sem = z_of(table)
    chosen.check_fits(model_of(embeddings), z_sem.shape[1])
    made_from = {"embeddings": file_checksum(embeddings), "direction": file_checksum(direction), "seed": seed}
    record = path.with_suffix(".json")
    _check_graded(path, record, made_from)

    def make() -> dict[str, Any]:
        graded = table[[name for name in ("id", "patient", "split") if name in table]].copy()
        graded["distance"] = chosen.distance(z_sem) / chosen.spread
        graded["prediction"] = chosen.predict(z_sem)
        label = f"label_{chosen.target}" if chosen.target in graded else chosen.target
        if chosen.target in table:
            graded[label] = table[chosen.target]
        write_atomic(path, lambda temporary: graded.to_csv(temporary, index=False, lineterminator="\n"))
        scores = _scores(graded, label, chosen, seed)
        log_to_open_run({f"{chosen.target}_{name}": row["score"] for name, row in scores.items()}, [], "grades")
        return {"scores": scores}

    numbers, skipped = run_once(record, [path], made_from, make, overwrite=overwrite)
    return GradeResult(path, numbers["scores"], skipped)


def _check_graded(path: Path, record: Path, made_from: Mapping[str, Any]) -> None:
    """Refuse to replace a table, or a record of its name, that is not of :func:`grade`: a cohort's, say."""
    there = next((file for file in (path, record) if file.exists()), None)
    content = _content_of(record)
    before = content.get("made_from") if isinstance(content, dict) else None
    if there is not None and not (isinstance(before, dict) and before.keys() == made_from.keys()):
        raise ConfigError(f"{there.name}: is there already, and grade did not make it; name another --out")


def _scores(graded: pd.DataFrame, label: str, direction: Direction, seed: int) -> dict[str, dict[str, Any]]:
    """How well the distance tells the label, for each split that has it."""
    if label not in graded:
        return {}
    known = graded[~missing(graded[label].tolist())]
    if direction.classes is not None and direction.classes[0] != rest_of(direction.classes[1]):
        is_one = known[label].map(class_name).isin(direction.classes)
        if not is_one.all():
            logger.info("%d cases of other classes are graded, and not scored", int((~is_one).sum()))
        known = known[is_one]
    splits = {"all": known} if "split" not in known else dict(iter(known.groupby("split")))
    scores = {}
    for name, rows in splits.items():
        truth = direction.truth(rows[label].tolist())
        if len(np.unique(truth)) < 2:
            continue
        groups = rows["patient"].tolist() if "patient" in rows else None
        metric: Literal["auroc", "r2"] = "auroc" if direction.kind == "binary" else "r2"
        scored = rows["distance" if direction.kind == "binary" else "prediction"].to_numpy()
        score, low, high = score_with_interval(metric, truth, scored, groups, seed)
        scores[str(name)] = {"metric": metric, "score": score, "low": low, "high": high, "num_cases": len(rows)}
    return scores
