"""Encoded cases as tables: a row an image, a volume, or a scan and one a patch."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monai_diffae.apps.embedding.encoding import EncodedCohort, check_any
from monai_diffae.bundle.checksums import checksum
from monai_diffae.data.cases import Case
from monai_diffae.data.cohort_split import SplitCohort
from monai_diffae.data.embeddings import patient_hash
from monai_diffae.data.failures import Failure, write_failures
from monai_diffae.data.slice_cases import gather_slices
from monai_diffae.errors import ConfigError

logger = logging.getLogger(__name__)

_OURS = re.compile(r"id|patient|split|slices|patch|patches|empty_patches|(z|std)_\d+")
_KEY = re.compile(r"[A-Za-z]\w*")  # of the config itself, not within a component


def gathered(
    split: SplitCohort, encoded: EncodedCohort, pool: str, failures_file: Path
) -> tuple[list[pd.DataFrame], list[Failure]]:
    """The table, with patches also that of these; and what is in neither, which is written.

    Raises:
        CohortError: nothing is in them.
    """
    failures = [*split.failures, *encoded.failures]
    if pool == "none":
        write_failures(failures_file, failures)
        check_any(encoded.cases, failures, "cases")
        if encoded.places is not None:
            return _of_patches(encoded.cases, encoded.z_sem, encoded.places), failures
        return [_table(encoded.cases, _columns("z", encoded.z_sem))], failures
    volumes, failures = gather_slices(split.cases, failures)
    write_failures(failures_file, failures)
    check_any(volumes, failures, "volumes")
    return [_pooled(volumes, encoded.cases, encoded.z_sem, pool)], failures


def preprocessing_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The transforms as a bundle's config says them, and the keys that they refer to."""
    transforms = config.get("preprocessing")
    keys = sorted(set(re.findall(r"@(\w+)", json.dumps(transforms))))
    return {**{key: config[key] for key in keys if key in config}, "preprocessing": transforms}


def other_preprocessing(table: pd.DataFrame, config: Mapping[str, Any]) -> list[str]:
    """In what a bundle's preprocessing differs from that which a table's metadata name; nothing where there are none.

    Example:
        >>> table = pd.DataFrame()
        >>> table.attrs["monai_diffae"] = {"preprocessing": {"image_size": [64, 64], "preprocessing": "@image_size"}}
        >>> other_preprocessing(table, {"image_size": [32, 32], "preprocessing": "@image_size"})
        ['image_size']
    """
    said = table.attrs.get("monai_diffae", {}).get("preprocessing")
    if said is None:
        return []
    own = json.loads(json.dumps(preprocessing_of(config)))
    return sorted(key for key in {*said, *own} if said.get(key) != own.get(key))


def made_with(table: pd.DataFrame) -> dict[str, Any]:
    """The values of a bundle's config that a table was made with, as its metadata say."""
    said = table.attrs.get("monai_diffae", {}).get("made_from", {}).get("overrides")
    return said if isinstance(said, dict) else {}


def overrides_of(table: pd.DataFrame) -> dict[str, Any]:
    """Those of :func:`made_with` that are plain values of the config itself.

    A table must not run code: what MONAI would evaluate, and what is of a component, is left out.

    Example:
        >>> table = pd.DataFrame()
        >>> said = {"slice_step": 1, "slice_range": "$print()", "inferer#steps": 5}
        >>> table.attrs["monai_diffae"] = {"made_from": {"overrides": said}}
        >>> overrides_of(table)
        {'slice_step': 1}
    """
    return {key: value for key, value in made_with(table).items() if _KEY.fullmatch(key) and _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_plain(each) for each in value)
    return value is None or isinstance(value, (int, float)) or (isinstance(value, str) and not set("$@%") & set(value))


def warn_of_another_cohort(table: pd.DataFrame, split: SplitCohort, cohort: str | os.PathLike[str], what: str) -> None:
    """Log a line where a cohort's files are not those that a table's metadata name.

    Args:
        table: of embeddings.
        split: the cohort, read.
        cohort: its file or folder.
        what: what the images are read for.
    """
    made_from = table.attrs.get("monai_diffae", {}).get("made_from", {})
    if made_from.get("cohort", split.fingerprint) != split.fingerprint:
        logger.warning(
            "%s: %s is not as it was when the table was made (its cases, splits or the sizes of its files); an id may "
            "be of another image now", what, Path(cohort).resolve().name,
        )  # fmt: skip


def _pooled(
    volumes: Mapping[str, Sequence[Case]], cases: Sequence[Case], z_sem: NDArray[np.float32], pool: str
) -> pd.DataFrame:
    """A row a volume, of the z_sem (N, D) of all slices; sums are in float64 and in the slices' order."""
    row_of = {case.id: row for row, case in enumerate(cases)}
    codes = [z_sem[[row_of[case.id] for case in slices]].astype(np.float64) for slices in volumes.values()]
    columns: dict[str, Any] = {"slices": [len(z) for z in codes]}
    columns |= _columns("z", np.stack([z.mean(axis=0) for z in codes]))
    if pool == "mean_std":
        columns |= _columns("std", np.stack([z.std(axis=0) for z in codes]))
    whole = [replace(slices[0], id=name, slice_index=None) for name, slices in volumes.items()]
    return _table(whole, columns)


def _of_patches(cases: Sequence[Case], z_sem: NDArray[np.float32], places: pd.DataFrame) -> list[pd.DataFrame]:
    """A row a scan, the mean z_sem of its patches; and a row a patch. ``cases`` (N) says whose patch each is."""
    starts = [row for row, case in enumerate(cases) if row == 0 or case.id != cases[row - 1].id]
    codes = np.split(z_sem.astype(np.float64), starts[1:])
    counts = np.array([len(z) for z in codes])
    on_grid = places["of"].to_numpy()[starts].astype(int)
    if on_grid.max() == 1:
        logger.warning("every scan is one patch: after the preprocessing none is larger than the model's field")
    of_scans = {"patches": counts, "empty_patches": on_grid - counts}
    scans = _table([cases[row] for row in starts], of_scans | _columns("z", np.stack([z.mean(axis=0) for z in codes])))
    of_patches = dict(places.drop(columns="of").astype({"patch": int})) | _columns("z", z_sem)
    return [scans, _table([replace(case, labels={}) for case in cases], of_patches)]


def _columns(prefix: str, values: NDArray[np.floating[Any]]) -> dict[str, NDArray[np.float32]]:
    return {f"{prefix}_{i:03d}": column for i, column in enumerate(values.T.astype(np.float32))}


def _table(cases: Sequence[Case], codes: Mapping[str, Any]) -> pd.DataFrame:
    columns: dict[str, Any] = {
        "id": [case.id for case in cases],
        "patient": [patient_hash(case.patient) for case in cases],
        "split": [case.split for case in cases],
    }
    for name in dict.fromkeys(name for case in cases for name in case.labels):
        column = f"label_{name}" if _OURS.fullmatch(name) else name
        if column in columns:
            raise ConfigError(f"columns: two of the cohort's labels would both be {column!r}; rename one of them")
        columns[column] = _as_column([case.labels.get(name) for case in cases])
    return pd.DataFrame({**columns, **codes})


def _as_column(values: list[Any]) -> list[Any]:
    """Numbers as they are, all else as text: a column is of one type."""
    there = [value for value in values if value is not None]
    if all(isinstance(value, bool) for value in there):
        return values
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in there):
        too_large = any(isinstance(value, int) and abs(value) >= 2**63 for value in there)
        return [value if value is None or not too_large else float(value) for value in values]
    return [None if value is None else str(value) for value in values]


_OF_IMAGES = ("none", "patch")  # tables whose z_sem are of single images, which can be decoded


def model_of(embeddings: str | os.PathLike[str]) -> str:
    """The SHA-256 of the weights that a table of embeddings was made with, from the record beside it.

    Raises:
        ConfigError: there is no such record.
    """
    return _model_and_pool(embeddings)[0]


def check_made_with(embeddings: str | os.PathLike[str], bundle: str | os.PathLike[str]) -> None:
    """Refuse a table of embeddings that another model made, or that holds no z_sem which the model could decode.

    Raises:
        ConfigError: another model made it, or it is not known which, or its z_sem are pooled.
    """
    name, (model, pool) = Path(embeddings).name, _model_and_pool(embeddings)
    if model != checksum(bundle):
        raise ConfigError(f"{name}: another autoencoder made it; embed the cohort with this bundle")
    if pool not in _OF_IMAGES:
        option = "--patches" if pool == "patches" else "--pool"
        raise ConfigError(f"{name}: its z_sem are pooled, of no single image; embed the cohort without {option}")


def _model_and_pool(embeddings: str | os.PathLike[str]) -> tuple[str, str]:
    path = Path(embeddings)
    record = path.with_suffix(".json")
    try:
        content = json.loads(record.read_text())
        made_from, is_finished = content["made_from"], bool(content["results"])
        model, pool = str(made_from["model"]), str(made_from.get("pool", "none"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path.name}: no record {record.name} beside it says which model made it; make both with "
            "monai-diffae embed"
        ) from error
    if not is_finished:  # a run that was killed between the record and the table
        raise ConfigError(f"{path.name}: was not finished; run monai-diffae embed again")
    return model, pool
