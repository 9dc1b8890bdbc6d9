"""The command ``predict``: labels of new scans, with probabilities or intervals, from labelled scans."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from monai_diffae.apps.command import command
from monai_diffae.apps.embedding.embed import Rows, embed
from monai_diffae.apps.record import run_once
from monai_diffae.apps.result import Result
from monai_diffae.apps.settings import NONE_GIVEN, LabelKinds, Reading, Run, Seed, this_process
from monai_diffae.bundle.model_file import checksum
from monai_diffae.data.atomic import write_atomic, write_csv
from monai_diffae.data.fingerprints import digest, file_checksum
from monai_diffae.errors import ConfigError, counted
from monai_diffae.lazy import on_first_use

with on_first_use:
    import numpy as np
    import pandas as pd

    from monai_diffae.apps import table_origin
    from monai_diffae.data import embeddings as tables
    from monai_diffae.latents import predictor as predictors
    from monai_diffae.latents import statistics
    from monai_diffae.latents import targets as labels
    from monai_diffae.latents.probing import scores as metrics

logger = logging.getLogger(__name__)

PREDICTOR = "predictor.safetensors"
FORMAT, VERSION = "monai_diffae.predictor", 1
_TENSORS = ("weight", "intercept", "mean", "std", "reference", "residuals", "marks")
_UNLIKE, _LABELLED = "unlike the labelled scans", "is a labelled scan"


@command
def predict(
    bundle: Path,
    cohort: Path,
    out: Path,
    *,
    labelled: Annotated[Path, Parameter(name=("--labelled", "--from"))],
    targets: Sequence[str] = (),
    kinds: LabelKinds = NONE_GIVEN,
    seed: Seed = 0,
    reading: Reading = Reading(),
    run: Run = Run(),
) -> Result:
    """Predict labels of new scans: classes with probabilities, or a number with an interval.

    A linear model is fitted to the z_sem of labelled scans, or to their wide features if the table has them and they
    predict better. Which, and how strongly the model is regularised, is chosen by cross-validation over patients;
    the score to expect is that of this whole procedure for held-out patients, whose predictions also calibrate
    probabilities and intervals. The classes are taken to be as frequent among the new scans as among the labelled ones.

    ``predictions.csv`` has one row per scan: ``id``; for classes the most probable one in a column with the name of
    the label, and the probability of each, ``sick_yes``; for numbers the value with ``age_low`` and ``age_high``,
    which hold that of 90 % of new scans (infinite with fewer than 9 labelled ones). ``sick_doubt`` is ``unlike the
    labelled scans`` if a scan is farther from their mean than 99 % of them, so that its prediction says nothing, or
    ``is a labelled scan``, whose label the model knows. ``predictor.safetensors`` is the fitted model: give it as
    ``labelled`` to use it again. It has three numbers per labelled scan, by which these are recognised, and no names.

    Args:
        bundle: Folder of the trained bundle that made the table.
        cohort: The new scans: folder, CSV/TSV, MONAI datalist or single scan.
        out: Folder for predictions, predictor, and the embeddings of the new scans.
        labelled: Table of embeddings with labels, written by ``embed``; or a ``predictor.safetensors``.
        targets: Label columns to predict; by default numbers, and text with 2 to 10 classes.
        kinds: Whether labels are ``classes`` or ``numbers``, e.g. ``stage=classes age=numbers``; by default as in
            ``probe``.
        seed: Random seed of folds and bootstrap.
        reading: How the new scans are read.
        run: How the command runs.

    Returns:
        The folder; ``predictions``, the table; ``scores``, for each label ``metric``, ``score`` with its 95 % interval
        (``low``, ``high``), ``features``, ``num_patients``, and for numbers ``coverage``, the share of held-out cases
        in their interval (None: it is infinite); ``counts`` of predicted classes, and ``doubts``; ``num_cases`` and
        ``num_failed``.

    Raises:
        ConfigError: the table is of another model or preprocessing, has no label to predict, or too few patients.
        CohortError: no usable scan.
    """
    if out.suffix in (".csv", ".parquet") or out.resolve() == labelled.parent.resolve():
        raise ConfigError(f"out: {out.name} is a file, or the folder of {labelled.name}; choose a new folder")
    if this_process().world_size > 1:
        raise ConfigError("predict: runs in one process; embed the new scans with several before, in out")
    fitted, origin = _predictors(labelled, checksum(bundle), targets, kinds, seed)
    counts = Counter(["id", *(each.target + end for each in fitted for end in _ends(each))])
    if twice := [name for name, count in counts.items() if count > 1]:
        raise ConfigError(f"targets: two of them give a column '{twice[0]}'; predict one of them at a time")
    features = "wide" if any(each.features == "wide" for each in fitted) else "z"
    made = embed(bundle, cohort, out, features=features, rows=Rows(pool=origin["pool"]), reading=reading, run=run)
    table = tables.read_embeddings(Path(made))
    if features == "wide" and origin["wide"] != table_origin.origin_of(Path(made)).get("wide"):
        raise ConfigError(f"labelled: {labelled.name} has wide features that were fitted again since; embed it again")
    preprocessing = table_origin.recorded_preprocessing(table)
    if None not in (preprocessing, origin["preprocessing"]) and preprocessing != origin["preprocessing"]:
        raise ConfigError(
            f"labelled: the scans of {labelled.name} were preprocessed in another way; use the same overrides"
        )
    predictions, predictor = out / "predictions.csv", out / PREDICTOR
    made_from = {
        "labelled": file_checksum(labelled),
        "embeddings": file_checksum(Path(made)),
        "targets": [each.target for each in fitted],
        "kinds": dict(kinds),
        "seed": seed,
    }

    def make() -> Mapping[str, Any]:
        rows = _rows(table, fitted)
        write_csv(predictions, rows)
        write_atomic(predictor, lambda path: write_predictors(path, fitted, origin))
        scores = {each.target: {**each.scores, "features": each.features} for each in fitted}
        counts = {each.target: rows[each.target].value_counts().to_dict() for each in fitted if each.classes}
        counts = {target: {str(name): int(count) for name, count in each.items()} for target, each in counts.items()}
        found = {each.target: Counter(rows[f"{each.target}_doubt"]) for each in fitted}
        doubts = {target: {name: each[name] for name in (_UNLIKE, _LABELLED)} for target, each in found.items()}
        figures = {"scores": scores, "counts": counts, "doubts": doubts}
        return {**figures, "num_cases": len(rows), "num_failed": made.num_failed}

    figures, skipped = run_once("predict", out, [predictions, predictor], made_from, make, overwrite=run.overwrite)
    return Result(
        out,
        figures,
        notes=list(_lines(figures)),
        incomplete=made.incomplete,
        skipped=skipped,
        content={"predictions": predictions, "predictor": predictor},
    )


def _predictors(
    path: Path, model: str, targets: Sequence[str], kinds: Mapping[str, Any], seed: int
) -> tuple[list[predictors.Predictor], dict[str, Any]]:
    """The predictors of a file, or fitted to a table; and the model and preprocessing of their codes."""
    if path.suffix == ".safetensors":
        fitted, origin = read_predictors(path)
        _check_model(path, origin, model)
        if kinds:
            raise ConfigError(f"kinds: are those of {path.name}; omit them")
        known = [each.target for each in fitted]
        if unknown := [name for name in targets if name not in known]:
            raise ConfigError(f"targets: {path.name} has no '{unknown[0]}'; choose from: {', '.join(known)}")
        return [each for each in fitted if not targets or each.target in targets], origin
    table_origin.check_z_sem(path)
    made_by: dict[str, Any] = table_origin.origin_of(path)
    _check_model(path, made_by, model)
    if "patch" in made_by["pool"]:
        raise ConfigError(f"labelled: {path.name} is of patches; embed the cohort without them")
    table = tables.read_embeddings(path).sort_values("id", kind="stable", ignore_index=True)
    known = tables.check_labels(table, {"targets": targets})
    names = list(dict.fromkeys(targets)) or labels.default_targets({each: table[each].tolist() for each in known})
    if unknown := [name for name in kinds if name not in names]:
        raise ConfigError(f"kinds: '{unknown[0]}' is not among the targets: {', '.join(names)}")
    if not names:
        raise ConfigError(f"labelled: {path.name} has no label to predict; set targets, or embed a cohort with labels")
    codes, patients, fitted = _codes(table), tables.patients_of(table), []
    for name in names:
        try:
            target = labels.read_target(table[name].tolist(), name, kind=kinds.get(name, "auto"))
            fitted.append(predictors.fit_predictor(codes, target, patients, seed))
        except ConfigError as error:
            if targets or len(names) == 1:
                raise
            logger.warning("%s", error)
        else:
            if left_out := [each for each in target.classes or () if each not in (fitted[-1].classes or ())]:
                logger.warning("target '%s': classes with too few patients are left out: %s", name, ", ".join(left_out))
    if not fitted:
        raise ConfigError(f"labelled: {path.name} has too few patients with a label; label more")
    return fitted, {
        "model": made_by["model"],
        "pool": made_by["pool"],
        "wide": made_by.get("wide"),
        "preprocessing": table_origin.recorded_preprocessing(table),
    }


def _check_model(path: Path, origin: Mapping[str, Any], model: str) -> None:
    if origin["model"] != model:
        raise ConfigError(f"labelled: {path.name} is of another model than the bundle; embed the cohort with it")


def _codes(table: pd.DataFrame) -> dict[str, Any]:
    """The z_sem of a table, and its wide features if it has any."""
    return {"z": tables.z_matrix(table)} | (
        {"wide": tables.matrix(table, "wide")} if tables.wide_columns(table) else {}
    )


def _ends(predictor: predictors.Predictor) -> list[str]:
    """The ends of the names of a predictor's columns."""
    inner = ["low", "high"] if predictor.classes is None else predictor.classes
    return ["", *(f"_{each}" for each in inner), "_doubt"]


def _rows(table: pd.DataFrame, fitted: Sequence[predictors.Predictor]) -> pd.DataFrame:
    """The table of predictions."""
    rows, codes = pd.DataFrame({"id": table["id"]}), _codes(table)
    for each in fitted:
        x = codes[each.features]
        predicted = each.predict(x)
        if each.classes is None:
            half = each.half_width
            columns = {"": predicted, "_low": predicted - half, "_high": predicted + half}
        else:
            most = np.array(each.classes, object)[predicted.argmax(axis=1)]
            columns = {"": most} | {f"_{name}": p for name, p in zip(each.classes, predicted.T, strict=True)}
        columns["_doubt"] = np.select([each.is_labelled(x), each.is_unlike(x)], [_LABELLED, _UNLIKE], "")
        for end, values in columns.items():
            rows[each.target + end] = values
    return rows


def _lines(figures: Mapping[str, Any]) -> Iterator[str]:
    """What to expect of each label, what was predicted, and which scans are in doubt."""
    for target, row in figures["scores"].items():
        score = f"{metrics.NAMES[row['metric']]} {row['score']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
        patients = counted(row["num_patients"], "labelled patient")
        yield f"{target}: expect {score}, as for held-out patients among {patients}; from {row['features']}"
        if row["low"] <= metrics.CHANCE[row["metric"]]:
            yield f"{target}: this may be chance, so do not use what is predicted; label more patients"
        if target in figures["counts"]:
            counts = ", ".join(f"{name} {count}" for name, count in figures["counts"][target].items())
            yield f"{target}: predicted {counts}"
        elif row["coverage"] is not None:
            yield f"{target}: the intervals held {row['coverage']:.0%} of held-out numbers (90 % expected)"
        else:
            yield f"{target}: too few labelled scans for an interval"
        doubts = figures["doubts"][target]
        if number := doubts[_UNLIKE]:
            yield f"{target}: {counted(number, 'scan')} unlike the labelled ones: do not trust their predictions"
        if number := doubts[_LABELLED]:
            yield f"{target}: {counted(number, 'scan')} among the labelled ones, whose labels the model knows"


# -- the file ----------------------------------------------------------------------------------------------------------


def write_predictors(path: Path, fitted: Sequence[predictors.Predictor], origin: Mapping[str, Any]) -> None:
    """Write predictors as plain numbers, with the SHA-256 of ``model`` and ``preprocessing``, and ``pool``."""
    from safetensors.numpy import save_file

    tensors: dict[str, Any] = {}
    entries = []
    for number, each in enumerate(fitted):
        parts = {"mean": each.statistics.mean, "std": each.statistics.std}
        values = {name: parts[name] if name in parts else getattr(each, name) for name in _TENSORS}
        tensors |= {f"{number}/{name}": np.ascontiguousarray(value, np.float64) for name, value in values.items()}
        plain_values = ("target", "classes", "features", "temperature", "scores")
        entries.append({name: getattr(each, name) for name in plain_values})
    content = json.dumps({"format": FORMAT, "version": VERSION, **origin, "predictors": entries})
    save_file(tensors, path, {"predictors": content, "sha256": _digest(content, tensors)})


def read_predictors(path: Path) -> tuple[list[predictors.Predictor], dict[str, Any]]:
    """The predictors of a file, and what their codes were made with: ``model``, ``pool``, and so on."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ConfigError(f"labelled: there is no file {path.name}; check the path")
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        content = json.loads(metadata["predictors"])
        is_whole = metadata["sha256"] == _digest(metadata["predictors"], tensors)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path.name}: is no file of predictors; make it with monai-diffae predict") from error
    if (content["format"], content["version"]) != (FORMAT, VERSION) or not is_whole:
        raise ConfigError(f"{path.name}: is damaged, or of another version; copy it again, or make it again")
    read = []
    for number, entry in enumerate(content["predictors"]):
        arrays = {name: tensors[f"{number}/{name}"] for name in _TENSORS}
        scale = statistics.LatentStatistics(arrays.pop("mean"), arrays.pop("std"))
        classes = None if entry["classes"] is None else tuple(entry["classes"])
        read.append(predictors.Predictor(**{**entry, **arrays, "classes": classes, "statistics": scale}))
    return read, {name: content[name] for name in ("model", "preprocessing", "pool", "wide")}


def _digest(content: str, tensors: Mapping[str, Any]) -> str:
    return digest(content, *(tensors[name] for name in sorted(tensors)))
