"""The command ``predict``: labels of new scans, from labelled scans, from a fitted model or along a direction."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from cyclopts import Parameter

from monai_diffae.apps.command import command
from monai_diffae.apps.embedding.embed import Rows, embed
from monai_diffae.apps.record import run_once
from monai_diffae.apps.result import Result
from monai_diffae.apps.settings import NONE_GIVEN, LabelKinds, Reading, Run, Seed, this_process
from monai_diffae.apps.synthesis.fit_direction import read_direction
from monai_diffae.apps.tracking import log_to_open_run
from monai_diffae.bundle.model_file import checksum
from monai_diffae.data.atomic import write_atomic, write_csv
from monai_diffae.data.fingerprints import digest, file_checksum
from monai_diffae.errors import ConfigError, counted
from monai_diffae.lazy import on_first_use

with on_first_use:
    import numpy as np
    import pandas as pd

    from monai_diffae import latents
    from monai_diffae.apps import table_origin
    from monai_diffae.data import embeddings as tables
    from monai_diffae.latents import predictor as predictors
    from monai_diffae.latents import statistics
    from monai_diffae.latents import targets as labels
    from monai_diffae.latents.probing import scores as metrics

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Model: TypeAlias = predictors.Predictor | latents.Direction

logger = logging.getLogger(__name__)

PREDICTOR = "predictor.safetensors"
FORMAT, VERSION = "monai_diffae.predictor", 2
_TENSORS = ("weight", "intercept", "mean", "std", "reference", "residuals", "marks")
_UNLIKE, _LABELLED, _CHANCE = "unlike the labelled scans", "is a labelled scan", "may be chance"


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
    New scans that have the label are scored, unless they or their patients are among the labelled ones.

    ``predictions.csv`` has one row per scan: ``id``; for classes the most probable one in a column with the name of
    the label, and the probability of each, ``sick_yes``; for numbers the value with ``age_low`` and ``age_high``,
    which hold that of 90 % of new scans (infinite with fewer than 9 labelled ones). ``sick_doubt`` is ``unlike the
    labelled scans`` if a scan is farther from their mean than 99 % of them, so that its prediction says nothing, or
    ``is a labelled scan``, or a copy of one, whose label the model knows, or ``may be chance`` for all if the labelled
    scans do not show that the label can be predicted; or two of these. If most scans are unlike the labelled ones, the
    command ends with exit code 3. ``predictor.safetensors`` is the fitted model: give it as
    ``labelled`` to use it again. It has 16 numbers per labelled scan, by which these are recognised, and no names.

    Along a direction, ``sick_distance`` is the signed distance in standard deviations of the training cases, for
    instance as a measure of severity. Its probabilities take both classes to be equally frequent; along a direction of
    ``import-official``, as frequent as in the classifier's training. Intervals and the first doubt are not known.

    Args:
        bundle: Folder of the trained bundle that made the table.
        cohort: The new scans: folder, CSV/TSV, MONAI datalist or single scan; or their table of embeddings, Parquet.
        out: Folder for predictions, predictor, and the embeddings of the new scans.
        labelled: Table of embeddings with labels, written by ``embed``; a ``predictor.safetensors``; or a direction,
            written by ``fit-direction``.
        targets: Label columns to predict; by default numbers, and text with 2 to 10 classes.
        kinds: Whether labels are ``classes`` or ``numbers``, e.g. ``stage=classes age=numbers``; by default as in
            ``probe``.
        seed: Random seed of folds and bootstrap.
        reading: How the new scans are read.
        run: How the command runs.

    Returns:
        The folder; ``predictions``, the table; ``scores``, for each label ``metric``, ``score`` with its 95 % interval
        (``low``, ``high``), ``features``, ``num_patients``, and for numbers ``coverage``, the share of held-out cases
        in their interval (None: it is infinite); ``measured``, the same scores of new scans with labels; ``counts`` of
        predicted classes, and ``doubts``; ``num_cases`` and ``num_failed``.

    Raises:
        ConfigError: the table is of another model or preprocessing, has no label to predict, or too few patients.
        CohortError: no usable scan.
    """
    if out.suffix in (".csv", ".parquet") or out.resolve() == labelled.parent.resolve():
        raise ConfigError(f"out: {out.name} is a file, or the folder of {labelled.name}; choose a new folder")
    if this_process().world_size > 1:
        raise ConfigError("predict: runs in one process; embed the new scans with several before, in out")
    source = _Source.read(labelled, checksum(bundle), targets, kinds)
    num_failed, incomplete, embeddings = 0, None, cohort
    if cohort.suffix.lower() != ".parquet":
        rows = Rows(pool=source.origin.get("pool", "none"))
        made = embed(bundle, cohort, out, features=source.features, rows=rows, reading=reading, run=run)
        num_failed, incomplete, embeddings = made.num_failed, made.incomplete, Path(made)
    table = tables.read_embeddings(embeddings)
    source.check_fits(embeddings, table)
    predictions, predictor = out / "predictions.csv", out / PREDICTOR
    made_from = {
        "labelled": file_checksum(labelled),
        "embeddings": file_checksum(embeddings),
        "targets": list(targets),
        "kinds": dict(kinds),
        "seed": seed,
    }

    def make() -> Mapping[str, Any]:
        models = source.models(targets, kinds, seed)
        rows = _rows(table, models)
        write_csv(predictions, rows)
        if fitted := [each for each in models if isinstance(each, predictors.Predictor)]:
            write_atomic(predictor, lambda path: write_predictors(path, fitted, source.origin))
        counts = {each.target: rows[each.target].value_counts().to_dict() for each in models if each.classes}
        found = {each.target: Counter(rows[f"{each.target}_doubt"].str.split(",").str[0]) for each in models}
        scores = {each.target: _expected(each) for each in models}
        measured = {each.target: _measured(table, rows, each, seed) for each in models}
        both = {"expected": scores, "measured": {name: each for name, each in measured.items() if each}}
        values = {f"{name}_{kind}": each["score"] for kind, of in both.items() for name, each in of.items()}
        log_to_open_run({name: score for name, score in values.items() if score is not None}, [], "predictions")
        return {
            "scores": scores,
            "measured": both["measured"],
            "counts": {target: {str(name): int(count) for name, count in of.items()} for target, of in counts.items()},
            "doubts": {target: {name: of[name] for name in (_UNLIKE, _LABELLED)} for target, of in found.items()},
            "num_cases": len(rows),
            "num_failed": num_failed,
        }

    files = [predictions] if labelled.suffix == ".json" else [predictions, predictor]
    figures, skipped = run_once("predict", out, files, made_from, make, overwrite=run.overwrite)
    content = {"predictions": predictions, "predictor": predictor if predictor in files else None}
    most = max(each[_UNLIKE] for each in figures["doubts"].values())
    if 2 * most > figures["num_cases"]:
        number = f"{most} of {counted(figures['num_cases'], 'new scan')}"
        unlike = f"{number} are unlike the labelled ones, perhaps of another kind: do not use their predictions"
        incomplete = "; ".join(filter(None, [incomplete, unlike]))
    return Result(out, figures, list(_lines(figures)), incomplete=incomplete, skipped=skipped, content=content)


@dataclass(frozen=True)
class _Source:
    """What predictions are made from: a file of embeddings, of predictors or of a direction."""

    path: Path
    origin: Mapping[str, Any]  # the model, preprocessing, pool and wide features of the codes that it is for
    features: Literal["z", "wide"]  # of the new scans
    fitted: Sequence[Model] = ()  # empty: it is a table, to which predictors are fitted

    @classmethod
    def read(cls, path: Path, model: str, targets: Sequence[str], kinds: Mapping[str, Any]) -> _Source:
        """Read a file, and check that it is of this model and has these targets."""
        features: Literal["z", "wide"] = "z"
        fitted: Sequence[Model] = ()
        if path.suffix == ".json":
            line = read_direction(path)
            fitted, known = [line], [line.target]
            origin: dict[str, Any] = {"model": line.model, "preprocessing": line.preprocessing}
        elif path.suffix == ".safetensors":
            read, origin = read_predictors(path)
            fitted, known = read, [each.target for each in read]
            features = "wide" if any(each.features == "wide" for each in read) else "z"
        else:
            table_origin.check_z_sem(path)
            table = tables.read_embeddings(path)
            recorded = table_origin.recorded_preprocessing(table)
            origin = {"pool": "none", "wide": None, **table_origin.origin_of(path), "preprocessing": recorded}
            origin = {name: origin[name] for name in ("model", "preprocessing", "pool", "wide")}
            if "patch" in origin["pool"]:
                raise ConfigError(f"labelled: {path.name} is of patches; embed the cohort without them")
            known = tables.check_labels(table, {"targets": targets})
            features = "wide" if tables.wide_columns(table) else "z"
        if origin["model"] != model:
            raise ConfigError(
                f"labelled: {path.name} is of another model than the bundle; embed or fit it with this bundle"
            )
        if fitted and kinds:
            raise ConfigError(f"kinds: are those of {path.name}; omit them")
        if unknown := [name for name in targets if name not in known]:
            raise ConfigError(f"targets: {path.name} has no '{unknown[0]}'; choose from: {', '.join(known)}")
        return cls(path, origin, features, [each for each in fitted if not targets or each.target in targets])

    def check_fits(self, embeddings: Path, table: pd.DataFrame) -> None:
        """Check that the codes of new scans were made like those of the file."""
        made = {**table_origin.origin_of(embeddings), "preprocessing": table_origin.recorded_preprocessing(table)}
        table_origin.check_z_sem(embeddings)
        for key, why in {
            "model": "is of another model; embed both with the same bundle",
            "pool": "was pooled in another way; embed both alike",
            "preprocessing": "is of scans that were preprocessed in another way; use the same overrides",
            "wide": "has wide features that were fitted again since; embed it again",
        }.items():
            known = {made.get(key), self.origin.get(key)} - {None}
            if len(known) > 1 and (key != "wide" or self.features == "wide"):
                raise ConfigError(f"labelled: {self.path.name} {why}")

    def models(self, targets: Sequence[str], kinds: Mapping[str, Any], seed: int) -> Sequence[Model]:
        """The models of the file, or those fitted to the table."""
        if self.fitted:
            return self.fitted
        table = tables.read_embeddings(self.path).sort_values("id", kind="stable", ignore_index=True)
        known = tables.check_labels(table, {"targets": targets})
        names = list(dict.fromkeys(targets)) or labels.default_targets({each: table[each].tolist() for each in known})
        if unknown := [name for name in kinds if name not in names]:
            raise ConfigError(f"kinds: '{unknown[0]}' is not among the targets: {', '.join(names)}")
        if not names:
            raise ConfigError(
                f"labelled: {self.path.name} has no label to predict; set targets, or embed a cohort with labels"
            )
        codes, patients, fitted = _codes(table), tables.patients_of(table), []
        for name in names:
            try:
                target = labels.read_target(table[name].tolist(), name, kind=kinds.get(name, "auto"))
                model = predictors.fit_predictor(codes, target, patients, seed)
                omitted = None if tables.knows_patients(table) else "num_patients"
                scores = {key: value for key, value in model.scores.items() if key != omitted}
                fitted.append(replace(model, scores=scores))
            except ConfigError as error:
                if targets or len(names) == 1:
                    raise
                logger.warning("%s", error)
            else:
                if left_out := [each for each in target.classes or () if each not in (fitted[-1].classes or ())]:
                    listed = ", ".join(left_out)
                    logger.warning("target '%s': classes with too few patients are left out: %s", name, listed)
        if not fitted:
            raise ConfigError(f"labelled: {self.path.name} has too few patients with a label; label more")
        return fitted


def _codes(table: pd.DataFrame) -> dict[str, Any]:
    """The z_sem of a table, with the standard deviations over slices if it has any, and its wide features."""
    z = np.concatenate([tables.z_matrix(table), table[tables.std_columns(table)].to_numpy(np.float32)], axis=1)
    return {"z": z} | ({"wide": tables.matrix(table, "wide")} if tables.wide_columns(table) else {})


def _rows(table: pd.DataFrame, models: Sequence[Model]) -> pd.DataFrame:
    """The table of predictions."""
    rows, codes = {"id": table["id"]}, _codes(table)
    for model in models:
        for end, values in predicted_columns(model, codes).items():
            if (name := model.target + end) in rows:
                raise ConfigError(f"targets: two of them give a column '{name}'; predict one of them at a time")
            rows[name] = values
    return pd.DataFrame(rows)


def predicted_columns(model: Model, codes: Mapping[str, Any]) -> dict[str, Any]:
    """What a model predicts of N cases from their codes: the columns ``[N]`` by the ends of their names.

    Args:
        model: a predictor or a direction.
        codes: ``[N, D]`` by name: ``z``, and ``wide`` if the model needs it.
    """
    expected = _expected(model)
    other = "" if expected["score"] is None or metrics.is_above_chance(expected) else _CHANCE
    if isinstance(model, latents.Direction):
        z = codes["z"][:, : model.statistics.z_channels]
        predicted = model.predict(z)
        columns = _of_classes(model.classes, np.stack([1 - predicted, predicted], axis=1)) if model.classes else {}
        doubt = _joined(other, np.where(model.is_fitted_to(z), _LABELLED, ""))
        return {"": predicted, **columns, "_distance": model.distance(z) / model.std, "_doubt": doubt}
    x, half = codes[model.features], model.half_width
    predicted = model.predict(x)
    doubt = _joined(other, np.where(model.is_labelled(x), _LABELLED, np.where(model.is_unlike(x), _UNLIKE, "")))
    numbers = {"": predicted, "_low": predicted - half, "_high": predicted + half}
    return {**(_of_classes(model.classes, predicted) if model.classes else numbers), "_doubt": doubt}


def _joined(other: str, doubts: NDArray[Any]) -> NDArray[Any]:
    """The doubts of scans, with one that holds for all of them."""
    return np.array([", ".join(filter(None, [each, other])) for each in doubts.tolist()], object)


def _of_classes(classes: Sequence[str], probabilities: NDArray[Any]) -> dict[str, Any]:
    most = np.array(classes, object)[probabilities.argmax(axis=1)]
    return {"": most, **{f"_{name}": p for name, p in zip(classes, probabilities.T, strict=True)}}


def _expected(model: Model) -> dict[str, Any]:
    """How well a model predicts held-out patients of the labelled cases."""
    if not isinstance(model, latents.Direction):
        return {**model.scores, "features": model.features}
    metric = "auroc" if model.classes else "r2"
    scores = {"metric": metric, "score": model.score, "low": model.low, "high": model.high, "p": model.p}
    return {**scores, "features": "z", "num_cases": model.num_cases}


def _measured(table: pd.DataFrame, rows: pd.DataFrame, model: Model, seed: int) -> dict[str, Any] | None:
    """How well a model predicts new cases that have the label; None: none has, or only one class of it."""
    if model.target not in tables.label_columns(table):
        return None
    patients = tables.patients_of(table)
    is_labelled = rows[f"{model.target}_doubt"].str.startswith(_LABELLED).to_numpy()
    is_new = ~np.isin(patients, patients[is_labelled]) & ~labels.missing(table[model.target].tolist())
    if model.classes is None:
        truth = pd.to_numeric(table[model.target], errors="coerce").to_numpy(float)
        is_new &= np.isfinite(truth)
    else:
        others = model.classes[0] == labels.rest_of(model.classes[-1])
        names = {name: code for code, name in enumerate(model.classes)}
        truth = table[model.target].map(labels.class_name).map(names).fillna(0 if others else -1).to_numpy(int)
        is_new &= truth >= 0
    order = np.flatnonzero(is_new)[np.argsort(table["id"][is_new].to_numpy(str), kind="stable")]
    if len(np.unique(truth[order])) < 2:
        return None
    predicted = rows.iloc[order]
    scores: metrics.ClassScores | metrics.NumberScores
    if model.classes is None:
        scores = metrics.NumberScores(truth[order], predicted[model.target])
    else:
        scores = metrics.ClassScores(truth[order], predicted[[f"{model.target}_{name}" for name in model.classes]])
    score, low, high = map(metrics.plain, metrics.with_interval(scores, patients[order], seed))
    return {"metric": scores.metrics[0], "score": score, "low": low, "high": high, "num_cases": len(order)}


def _lines(figures: Mapping[str, Any]) -> Iterator[str]:
    """What to expect of each label, what was predicted, and which scans are in doubt."""
    for target, row in figures["scores"].items():
        unit, number = ("patient", row["num_patients"]) if "num_patients" in row else ("case", row["num_cases"])
        among = counted(number, f"labelled {unit}")
        if row["score"] is None:  # of an imported direction
            yield f"{target}: what to expect is unknown; give new scans this label to measure it"
        else:
            yield f"{target}: expect {_score(row)}, as for held-out {unit}s among {among}; from {row['features']}"
        if row["score"] is not None and not metrics.is_above_chance(row):
            yield f"{target}: this may be chance, so do not use what is predicted; label more patients"
        if measured := figures["measured"].get(target):
            scans = counted(measured["num_cases"], "new scan")
            yield f"{target}: measured {_score(measured)} on {scans} with this label"
        if target in figures["counts"]:
            counts = ", ".join(f"{name} {count}" for name, count in figures["counts"][target].items())
            yield f"{target}: predicted {counts}"
        elif "coverage" in row and row["coverage"] is None:
            yield f"{target}: too few labelled scans for an interval"
        elif "coverage" in row:
            yield f"{target}: the intervals held {row['coverage']:.0%} of held-out numbers (90 % expected)"
        doubts = figures["doubts"][target]
        if number := doubts[_UNLIKE]:
            yield f"{target}: {counted(number, 'scan')} unlike the labelled ones: do not trust their predictions"
        if number := doubts[_LABELLED]:
            yield f"{target}: {counted(number, 'scan')} among the labelled ones, whose labels the model knows"


def _score(row: Mapping[str, Any]) -> str:
    interval = "" if row["low"] is None else f" ({row['low']:.2f} to {row['high']:.2f})"
    return f"{metrics.NAMES[row['metric']]} {row['score']:.2f}{interval}"


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
        plain_values = ("target", "classes", "features", "temperature", "tolerance", "scores")
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
