"""Reads a table of embeddings with the columns that a study needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from monai_diffae.data.embeddings import label_columns, read_embeddings
from monai_diffae.errors import CohortError, ConfigError


def read_study(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """The rows of a table, sorted by id; the table must have patients, unique ids and these label columns."""
    table = read_embeddings(path)
    if "patient" not in table:
        raise CohortError(f"{path.name}: has no column patient, so repeated scans are unknown; embed with patients")
    if "id" not in table or table["id"].astype(str).duplicated().any():
        raise CohortError(f"{path.name}: has no column id with a unique name for each scan; keep one row per scan")
    labels = label_columns(table)
    for name in columns:
        if name not in labels:
            raise ConfigError(f"there is no label column '{name}'; choose from: {', '.join(labels) or 'none'}")
    return table.sort_values("id", kind="stable").reset_index(drop=True)
