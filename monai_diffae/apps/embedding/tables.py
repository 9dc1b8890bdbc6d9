"""Tables of z_sem: one row per image, per volume, or per scan and per patch; and what a table was made with."""

# tested in tests/apps/embedding/test_embed_volumes.py

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

from monai_diffae.apps.embedding.encoding import EncodedCohort, check_any_encoded
from monai_diffae.bundle.checksums import checksum
from monai_diffae.data.cases import Case
from monai_diffae.data.cohort_split import SplitCohort
from monai_diffae.data.embeddings import patient_hash
from monai_diffae.data.failures import Failure, write_failures
from monai_diffae.data.slice_cases import gather_slices
from monai_diffae.errors import ConfigError

logger = logging.getLogger(__name__)

_RESERVED_COLUMNS = re.compile(r"id|patient|split|slices|patch|patches|empty_patches|(z|std)_\d+")
_TOP_LEVEL_KEY = re.compile(r"[A-Za-z]\w*")
_IMAGE_POOLS = ("none", "patch")  # each z_sem belongs to a single image, so it can be decoded


def make_tables(
    cohort: SplitCohort, encoded: EncodedCohort, pool: str, failures_file: Path
) -> tuple[list[pd.DataFrame], list[Failure]]:
    """Make the table of an encoded cohort, and the table of its patches if scans were cut; write the failures.

    Args:
        cohort: the cohort.
        encoded: its cases, encoded.
        pool: ``none``, ``mean`` or ``mean_std``.
        failures_file: where to list the cases (volumes if these are pooled) that have no row.

    Returns:
        One table, or two with patches; and the failures.

    Raises:
        CohortError: all cases failed.
    """
    failures = [*cohort.failures, *encoded.failures]
    if pool == "none":
        write_failures(failures_file, failures)
        check_any_encoded(encoded.cases, failures, "cases")
        if encoded.places is not None:
            return _scan_and_patch_tables(encoded.cases, encoded.z_sem, encoded.places), failures
        return [_table(encoded.cases, _columns("z", encoded.z_sem))], failures
    volumes, failures = gather_slices(cohort.cases, failures)
    write_failures(failures_file, failures)
    check_any_encoded(volumes, failures, "volumes")
    return [_pooled_table(volumes, encoded.cases, encoded.z_sem, pool)], failures


def preprocessing_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a bundle's configuration that describes the preprocessing, with the keys that it refers to."""
    transforms = config.get("preprocessing")
    keys = sorted(set(re.findall(r"@(\w+)", json.dumps(transforms))))
    return {**{key: config[key] for key in keys if key in config}, "preprocessing": transforms}


def other_preprocessing(table: pd.DataFrame, config: Mapping[str, Any]) -> list[str]:
    """The keys in which a bundle's preprocessing differs from the one a table was made with.

    The list is empty if the table has no metadata, as one that was read from a CSV.

    Example:
        >>> table = pd.DataFrame()
        >>> table.attrs["monai_diffae"] = {"preprocessing": {"image_size": [64, 64], "preprocessing": "@image_size"}}
        >>> other_preprocessing(table, {"image_size": [32, 32], "preprocessing": "@image_size"})
        ['image_size']
    """
    recorded = table.attrs.get("monai_diffae", {}).get("preprocessing")
    if recorded is None:
        return []
    current = json.loads(json.dumps(preprocessing_config(config)))
    return sorted(key for key in {*recorded, *current} if recorded.get(key) != current.get(key))


def made_with(table: pd.DataFrame) -> dict[str, Any]:
    """The overrides of the bundle's configuration that a table was made with, from its metadata."""
    overrides = table.attrs.get("monai_diffae", {}).get("made_from", {}).get("overrides")
    return overrides if isinstance(overrides, dict) else {}


def overrides_of(table: pd.DataFrame) -> dict[str, Any]:
    """The overrides of :func:`made_with` that are safe to use: plain values of top-level keys.

    A table must not run code, so values that MONAI would evaluate, and arguments of components, are ignored.

    Example:
        >>> table = pd.DataFrame()
        >>> overrides = {"slice_step": 1, "slice_range": "$print()", "inferer#solver": "ddim"}
        >>> table.attrs["monai_diffae"] = {"made_from": {"overrides": overrides}}
        >>> overrides_of(table)
        {'slice_step': 1}
    """
    return {key: value for key, value in made_with(table).items() if _TOP_LEVEL_KEY.fullmatch(key) and _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_plain(each) for each in value)
    return value is None or isinstance(value, (int, float)) or (isinstance(value, str) and not set("$@%") & set(value))


def warn_of_another_cohort(table: pd.DataFrame, split: SplitCohort, cohort: str | os.PathLike[str], what: str) -> None:
    """Log a warning if a cohort differs from the one that a table was made from.

    Args:
        table: the embeddings, with metadata.
        split: the cohort, read.
        cohort: its file or folder.
        what: what the images are read for; the beginning of the message.
    """
    made_from = table.attrs.get("monai_diffae", {}).get("made_from", {})
    if made_from.get("cohort", split.fingerprint) != split.fingerprint:
        logger.warning(
            "%s: %s is not as it was when the table was made (its cases, splits or the sizes of its files); an id may "
            "be of another image now", what, Path(cohort).resolve().name,
        )  # fmt: skip


def _pooled_table(
    volumes: Mapping[str, Sequence[Case]], cases: Sequence[Case], z_sem: NDArray[np.float32], pool: str
) -> pd.DataFrame:
    """One row per volume, from the z_sem (N, D) of all slices; sums are in float64 and in the slices' order."""
    rows = {case.id: row for row, case in enumerate(cases)}
    codes = [z_sem[[rows[case.id] for case in slices]].astype(np.float64) for slices in volumes.values()]
    columns: dict[str, Any] = {"slices": [len(z) for z in codes]}
    columns |= _columns("z", np.stack([z.mean(axis=0) for z in codes]))
    if pool == "mean_std":
        columns |= _columns("std", np.stack([z.std(axis=0) for z in codes]))
    volume_cases = [replace(slices[0], id=name, slice_index=None) for name, slices in volumes.items()]
    return _table(volume_cases, columns)


def _scan_and_patch_tables(
    cases: Sequence[Case], z_sem: NDArray[np.float32], places: pd.DataFrame
) -> list[pd.DataFrame]:
    """A table with one row per scan (the mean z_sem of its patches), and one with one row per patch.

    Args:
        cases: (N,) the scan that each patch belongs to.
        z_sem: (N, D) of the patches.
        places: (N, K) where the patches lie.
    """
    starts = [row for row, case in enumerate(cases) if row == 0 or case.id != cases[row - 1].id]
    codes = np.split(z_sem.astype(np.float64), starts[1:])
    counts = np.array([len(z) for z in codes])
    grid_sizes = places["of"].to_numpy()[starts].astype(int)
    if grid_sizes.max() == 1:
        logger.warning("every scan is one patch: after preprocessing, none is larger than the model's field of view")
    scan_columns: dict[str, Any] = {"patches": counts, "empty_patches": grid_sizes - counts}
    scan_columns |= _columns("z", np.stack([z.mean(axis=0) for z in codes]))
    patch_columns = dict(places.drop(columns="of").astype({"patch": int})) | _columns("z", z_sem)
    scans = _table([cases[row] for row in starts], scan_columns)
    return [scans, _table([replace(case, labels={}) for case in cases], patch_columns)]


def _columns(prefix: str, values: NDArray[np.floating[Any]]) -> dict[str, NDArray[np.float32]]:
    return {f"{prefix}_{i:03d}": column for i, column in enumerate(values.T.astype(np.float32))}


def _table(cases: Sequence[Case], codes: Mapping[str, Any]) -> pd.DataFrame:
    columns: dict[str, Any] = {
        "id": [case.id for case in cases],
        "patient": [patient_hash(case.patient) for case in cases],
        "split": [case.split for case in cases],
    }
    for name in dict.fromkeys(name for case in cases for name in case.labels):
        column = f"label_{name}" if _RESERVED_COLUMNS.fullmatch(name) else name
        if column in columns:
            raise ConfigError(f"columns: two labels of the cohort would both become {column!r}; rename one of them")
        columns[column] = _as_column([case.labels.get(name) for case in cases])
    return pd.DataFrame({**columns, **codes})


def _as_column(values: list[Any]) -> list[Any]:
    """Labels with one type for the whole column: booleans, numbers, or text for all else."""
    labels = [value for value in values if value is not None]
    if all(isinstance(value, bool) for value in labels):
        return values
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in labels):
        too_large = any(isinstance(value, int) and abs(value) >= 2**63 for value in labels)
        return [value if value is None or not too_large else float(value) for value in values]
    return [None if value is None else str(value) for value in values]


def model_of(embeddings: str | os.PathLike[str]) -> str:
    """The SHA-256 of the weights that a table of embeddings was made with, from the record beside the table.

    Raises:
        ConfigError: there is no record.
    """
    return _model_and_pool(embeddings)[0]


def check_made_with(embeddings: str | os.PathLike[str], bundle: str | os.PathLike[str]) -> None:
    """Check that a table of embeddings was made with this bundle, and that its z_sem can be decoded.

    Raises:
        ConfigError: another model made the table, or its z_sem are pooled, or there is no record beside it.
    """
    name, (model, pool) = Path(embeddings).name, _model_and_pool(embeddings)
    if model != checksum(bundle):
        raise ConfigError(f"{name}: another autoencoder made it; embed the cohort with this bundle")
    if pool not in _IMAGE_POOLS:
        option = "patches" if pool == "patches" else "pool"
        raise ConfigError(
            f"{name}: its z_sem are averages, which do not belong to single images; embed the cohort without {option}"
        )


def _model_and_pool(embeddings: str | os.PathLike[str]) -> tuple[str, str]:
    path = Path(embeddings)
    record = path.with_suffix(".json")
    try:
        content = json.loads(record.read_text())
        made_from, is_finished = content["made_from"], bool(content["results"])
        model, pool = str(made_from["model"]), str(made_from.get("pool", "none"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path.name}: there is no record {record.name} beside it, so its model is unknown; make both with "
            "monai-diffae embed"
        ) from error
    if not is_finished:  # the run was killed between writing the record and the table
        raise ConfigError(f"{path.name}: is not complete; run monai-diffae embed again")
    return model, pool
