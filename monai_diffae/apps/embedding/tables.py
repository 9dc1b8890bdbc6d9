"""Tables of z_sem: one row per image, per volume, or per scan and per patch."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from monai_diffae.apps.embedding.encoding import EncodedCohort
from monai_diffae.bundle import TrainedBundle
from monai_diffae.data.cases import Case, PatientKey
from monai_diffae.data.cohort_split import SplitCohort, gather_slices, whole_scan
from monai_diffae.data.embeddings import MAP_COLUMNS, numbered_columns, training_rows, z_matrix
from monai_diffae.data.progress import Failure, check_any_usable, count_by_label, write_failures
from monai_diffae.data.streamed import read_stream
from monai_diffae.errors import ConfigError, counted, quoted
from monai_diffae.latents import LatentStatistics, principal_components
from monai_diffae.pictures import thumbnail

logger = logging.getLogger(__name__)

_RESERVED_COLUMNS = re.compile(
    r"id|file_name|patient|split|slices|patch|patches|empty_patches|thumbnail|(z|std)_\d+|w_\d{3,}"
)


def make_tables(
    cohort: SplitCohort, encoded: EncodedCohort, pool: str, failures_file: Path, key: PatientKey
) -> tuple[list[pd.DataFrame], list[Failure]]:
    """Make the table of an encoded cohort, and that of its patches if scans were cut; write and return the failures."""
    failures = [*cohort.failures, *encoded.failures]
    by_label = count_by_label([failure.case_id for failure in failures], cohort.cases)
    if by_label:
        logger.warning("no z_sem for %s%s", counted(len(failures), "case"), by_label)
    if pool == "none":
        write_failures(failures_file, failures)
        check_any_usable(len(encoded.cases), failures)
        if encoded.places is not None:
            return _scan_and_patch_tables(encoded, encoded.places, key), failures
        return [_table(encoded.cases, encoded.columns(encoded.codes), key)], failures
    volumes, failures = gather_slices(cohort.cases, failures)
    write_failures(failures_file, failures)
    check_any_usable(len(volumes), failures, "volumes")
    return [_pooled_table(volumes, encoded, pool, key)], failures


def _pooled_table(
    volumes: Mapping[str, Sequence[Case]], encoded: EncodedCohort, pool: str, key: PatientKey
) -> pd.DataFrame:
    """One row per volume, from the codes of all slices; sums are in float64 and in the slices' order."""
    rows = {case.id: row for row, case in enumerate(encoded.cases)}
    codes = [encoded.codes[[rows[case.id] for case in slices]].astype(np.float64) for slices in volumes.values()]
    columns: dict[str, Any] = {"slices": [len(z) for z in codes]}
    columns |= encoded.columns(np.stack([z.mean(axis=0) for z in codes]))
    if pool == "mean_std":
        columns |= numbered_columns("std", np.stack([z.std(axis=0) for z in codes])[:, : encoded.z_channels])
    return _table([whole_scan(slices[0]) for slices in volumes.values()], columns, key)


def _scan_and_patch_tables(encoded: EncodedCohort, places: pd.DataFrame, key: PatientKey) -> list[pd.DataFrame]:
    """A table with one row per scan (the mean code of its patches), and one with one row per patch."""
    cases = encoded.cases
    starts = [row for row, case in enumerate(cases) if row == 0 or case.id != cases[row - 1].id]
    codes = np.split(encoded.codes.astype(np.float64), starts[1:])
    counts = np.array([len(z) for z in codes])
    grid_sizes = places["of"].to_numpy()[starts].astype(int)
    if grid_sizes.max() == 1:
        logger.warning("every scan is one patch: after preprocessing, none is larger than the model's field of view")
    scan_columns: dict[str, Any] = {"patches": counts, "empty_patches": grid_sizes - counts}
    scan_columns |= encoded.columns(np.stack([z.mean(axis=0) for z in codes]))
    patch_columns = dict(places.drop(columns="of").astype({"patch": int})) | encoded.columns(encoded.codes)
    scans = _table([cases[row] for row in starts], scan_columns, key)
    return [scans, _table([replace(case, labels={}) for case in cases], patch_columns, key)]


def _table(cases: Sequence[Case], codes: Mapping[str, Any], key: PatientKey) -> pd.DataFrame:
    columns: dict[str, Any] = {"id": [case.id for case in cases], "file_name": [case.file_name for case in cases]}
    if columns["id"] == columns["file_name"]:
        del columns["file_name"]
    columns["patient"] = [key.hash(case.patient) for case in cases]
    if any(case.split for case in cases):  # not of scans that are new to the model
        columns["split"] = [case.split for case in cases]
    for name in dict.fromkeys(name for case in cases for name in case.labels):
        column = f"label_{name}" if _RESERVED_COLUMNS.fullmatch(name) else name
        if column in columns:
            raise ConfigError(f"columns: two labels would both become {quoted(column)}; rename one of them")
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


def with_map_columns(
    table: pd.DataFrame, cases: Sequence[Case], trained: TrainedBundle, workers: int, *, common_scale: bool
) -> pd.DataFrame:
    """Add two principal components ``x`` and ``y``, and a ``thumbnail``, to a table with one row per image."""
    z_train = z_matrix(training_rows(table))
    components = principal_components(z_train, LatentStatistics.of(z_train, common_scale=common_scale), 2)
    x, y = components.coordinates(z_matrix(table)).T
    by_id = {case.id: case for case in cases}
    items = [by_id[name].item() for name in table["id"]]
    pictures = []
    for image in read_stream(items, trained.preprocessing, ("image",), workers):
        if isinstance(image, Exception):
            raise image
        pictures.append(thumbnail(trained.shown(torch.from_numpy(image["image"])[None])))
    labels = table.rename(columns={name: f"label_{name}" for name in MAP_COLUMNS})
    return labels.assign(x=x, y=y, thumbnail=pictures)
