"""Tables of z_sem: reading one, what its columns are, and its vectors as a data set."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from monai_diffae.data.cases import MISSING_WORDS
from monai_diffae.errors import CohortError, ConfigError

_Z = re.compile(r"z_\d+")
_STD = re.compile(r"std_\d+")
_ABOUT_CASES = ("id", "patient", "split", "slices", "patches", "empty_patches")
_ABOUT_PATCHES = ("patch", "row_px", "column_px", "x_mm", "y_mm", "z_mm")


def read_embeddings(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read a table that :func:`~monai_diffae.apps.embedding.embed.embed` wrote, or a CSV of it.

    Its rows are counted from 0. Labels that are :data:`~monai_diffae.data.cases.MISSING_WORDS` are missing. Of a CSV,
    ``attrs["monai_diffae"]["made_from"]`` is what the record beside it says.

    Raises:
        CohortError: it is not there, is no such table, or holds no cases or values that are no finite numbers.
        ConfigError: it is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"{path.resolve().name}: is a folder; name the table in it, such as embeddings.parquet")
    if not path.is_file():
        raise CohortError(f"{path.name}: there is no such file; make it with monai-diffae embed")
    is_csv = path.suffix.lower() == ".csv"
    try:
        table = (_read_csv(path) if is_csv else pd.read_parquet(path)).reset_index(drop=True)
    except Exception as error:
        kind = "CSV" if is_csv else "Parquet"
        raise CohortError(f"{path.name}: this is not a {kind} table; make it with monai-diffae embed") from error
    if not z_columns(table):
        raise CohortError(f"{path.name}: it has no columns z_000, z_001, ...; make it with monai-diffae embed")
    if table.empty:
        raise CohortError(f"{path.name}: there is no case in it; embed a cohort that has some")
    try:
        z_of(table)
    except CohortError as error:
        raise CohortError(f"{path.name}: {error}") from error
    for name in table[label_columns(table)].select_dtypes(exclude=["number", "bool"]):
        is_missing = [isinstance(value, str) and value in MISSING_WORDS for value in table[name]]
        table[name] = table[name].mask(np.array(is_missing))
    return table


def patient_hash(patient: str) -> str:
    """The first 16 hexadecimal digits of a patient's SHA-256.

    Example:
        >>> patient_hash("sub-01")
        '41c1ca2f53f4dd0b'
    """
    return hashlib.sha256(patient.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _read_csv(path: Path) -> pd.DataFrame:
    names = pd.read_csv(path, nrows=0).columns
    missing = {name: list(MISSING_WORDS) for name in names if name not in ("id", "patient")}  # a case may be called NA
    text = {name: str for name in ("id", "patient") if name in names}
    table = pd.read_csv(path, dtype=text, keep_default_na=False, na_values=missing)
    with suppress(OSError, ValueError, KeyError, TypeError):  # a table without a record is one, too
        content = json.loads(path.with_suffix(".json").read_text())
        if content["results"]:  # else it is of a run that was killed
            table.attrs["monai_diffae"] = {"made_from": dict(content["made_from"])}
    return table


def z_columns(table: pd.DataFrame) -> list[str]:
    """The names of the columns that hold z_sem.

    Example:
        >>> z_columns(pd.DataFrame(columns=["id", "z_score", "z_000", "z_001"]))
        ['z_000', 'z_001']
    """
    return [name for name in table.columns if _Z.fullmatch(name)]


def std_columns(table: pd.DataFrame) -> list[str]:
    """The names of the columns that hold the standard deviation of z_sem over a volume's slices; mostly none."""
    return [name for name in table.columns if _STD.fullmatch(name)]


def label_columns(table: pd.DataFrame) -> list[str]:
    """The names of the columns that are neither of z_sem nor say which case, or patch of it, it is.

    Example:
        >>> label_columns(pd.DataFrame(columns=["id", "patient", "split", "age", "z_000"]))
        ['age']
    """
    places = _ABOUT_PATCHES if "patch" in table else ()
    ours = {*_ABOUT_CASES, *places, *z_columns(table), *std_columns(table)}
    return [name for name in table.columns if name not in ours]


def z_of(table: pd.DataFrame) -> NDArray[np.float32]:
    """z_sem (N, D), float32, in the order of the rows.

    Raises:
        CohortError: values that are no finite numbers.

    Example:
        >>> z_of(pd.DataFrame({"id": ["a"], "z_000": [1.0], "z_001": [2.0]}))
        array([[1., 2.]], dtype=float32)
    """
    try:
        z = table[z_columns(table)].to_numpy(np.float32)
    except (TypeError, ValueError):
        z = np.full((1, 1), np.nan, np.float32)
    if not np.isfinite(z).all():
        raise CohortError("the columns z_000, z_001, ... hold values that are no finite numbers; embed again")
    return z


def rows_of_split(table: pd.DataFrame, split: str) -> pd.DataFrame:
    """The rows of ``train``, ``val`` or ``test``.

    Raises:
        CohortError: no column ``split``, or no such case.
    """
    rows = table[table["split"] == split] if "split" in table else table.iloc[:0]
    if rows.empty:
        raise CohortError(f"the embeddings have no case of the split '{split}'; embed a cohort that has one")
    return rows


def embeddings_fingerprint(table: pd.DataFrame) -> str:
    """A SHA-256 of the z_sem and their splits; ids and labels do not count."""
    digest = hashlib.sha256(z_of(table).astype("<f4").tobytes())
    digest.update("\n".join(table["split"].astype(str)).encode())
    return digest.hexdigest()


class EmbeddedCases(Dataset[dict[str, Any]]):
    """The z_sem of one split: items ``{"z": (D,) float32, "index": position, "id": case}``.

    Args:
        table: of embeddings, with a column ``split``.
        split: ``train``, ``val`` or ``test``.
        transform: of z_sem (N, D), such as :meth:`LatentStatistics.normalise
            <monai_diffae.latents.statistics.LatentStatistics.normalise>`; None: as the encoder gave it.
        draws: how many items each case makes, under indices of their own: a validation, whose noise is a function of
            the index, then sees a case at several noise levels, and an epoch over few cases is long enough.

    Attributes:
        z: (N, D) float32, each case once.

    Raises:
        CohortError: no column ``split``, or no such case.

    Example:
        >>> table = pd.DataFrame({"id": ["a", "b"], "split": ["train", "val"], "z_000": [1.0, 2.0]})
        >>> cases = EmbeddedCases(table, "val", draws=2)
        >>> len(cases), cases[1]
        (2, {'z': tensor([2.]), 'index': 1, 'id': 'b'})
    """

    def __init__(
        self,
        table: pd.DataFrame,
        split: str,
        transform: Callable[[NDArray[np.float32]], NDArray[Any]] | None = None,
        draws: int = 1,
    ) -> None:
        rows = rows_of_split(table, split)
        z = z_of(rows)
        self.z = torch.tensor(z if transform is None else transform(z), dtype=torch.float32)
        self.ids = [str(case) for case in rows["id"]]
        self.draws = draws

    def __len__(self) -> int:
        return len(self.ids) * self.draws

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Any]:
        """One item, by its position or by (epoch, position), as a training loader asks."""
        position = range(len(self))[index[1] if isinstance(index, tuple) else index]
        case = position // self.draws
        return {"z": self.z[case], "index": position, "id": self.ids[case]}


def training_rows(embeddings: str | os.PathLike[str]) -> pd.DataFrame:
    """The training cases of a table of embeddings; all of them where it has no split.

    Raises:
        CohortError: no table, or it has a split, and no training case.
    """
    table = read_embeddings(embeddings)
    try:
        return rows_of_split(table, "train") if "split" in table else table
    except CohortError as error:
        raise CohortError(f"{Path(embeddings).name}: {error}") from error


def training_codes(embeddings: str | os.PathLike[str]) -> NDArray[np.float32]:
    """z_sem (N, D) of the training cases."""
    return z_of(training_rows(embeddings))
