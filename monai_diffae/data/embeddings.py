"""Read tables of z_sem, tell their columns apart, and use their vectors as a data set."""

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pyarrow.parquet import read_schema

from monai_diffae.data.cases import MISSING_WORDS, SplitOrigin, as_labels, marks_twins
from monai_diffae.data.fingerprints import digest
from monai_diffae.errors import CohortError, ConfigError, counted
from monai_diffae.policies import Features, PathLike

logger = logging.getLogger(__name__)

MAP_COLUMNS = ("x", "y", "thumbnail")
"""Where a case lies on a map, and its picture as PNG; a table has all three or none."""

_FIGURES = (
    "z_sem_usage",
    "patient_key",
    "preprocessing",
    "split_origin",
    "knows_patients",
)  # of the record beside a CSV
_MOST_SAMPLED = 100
COMMON_SCALE = ("pca", "words", "planar")
"""Encoders whose columns are principal components."""
_Z = re.compile(r"z_\d+")
_STD = re.compile(r"std_\d+")
_WIDE = re.compile(r"w_\d{3,}")
_CASE_COLUMNS = ("id", "file_name", "patient", "split", "slices", "patches", "empty_patches")
_PATCH_COLUMNS = ("patch", "row_px", "column_px", "x_mm", "y_mm", "z_mm")


def read_embeddings(path: PathLike) -> pd.DataFrame:
    """Read a table written by :func:`monai_diffae.embed`, as Parquet or CSV.

    The rows are numbered from 0. Labels among :data:`~monai_diffae.data.cases.MISSING_WORDS` become missing values.
    For a CSV, ``attrs["monai_diffae"]`` is read from the record beside it, see :func:`read_metadata`.

    Raises:
        CohortError: the file does not exist, is not such a table, has no rows, or its z_sem are not finite numbers.
        ConfigError: ``path`` is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"{path.resolve().name}: is a folder; give the table in it, such as embeddings.parquet")
    if not path.is_file():
        raise CohortError(f"{path.name}: there is no such file; make it with monai-diffae embed").at(path)
    is_csv = path.suffix.lower() == ".csv"
    try:
        table = _read_csv(path) if is_csv else pd.read_parquet(path).reset_index(drop=True)
        metadata = read_metadata(path)
        table.attrs = {"monai_diffae": metadata} if metadata else {}  # a table without a record is valid, too
    except Exception as error:
        kind = "CSV" if is_csv else "Parquet"
        raise CohortError(f"{path.name}: is not a {kind} table; make it with monai-diffae embed") from error
    check_width(table, path)
    if table.empty:
        raise CohortError(f"{path.name}: has no rows; embed a cohort with usable cases")
    try:
        z_matrix(table)
    except CohortError as error:
        raise CohortError(f"{path.name}: {error}") from error
    if "id" in table and "patch" not in table and (num_double := int(table["id"].duplicated().sum())):
        logger.warning(
            "%s: %s with the id of another row, taken for further cases; keep one row per case",
            path.name,
            counted(num_double, "row"),
        )
    if encoder_name(table) == "harmonized":
        kept = "".join(
            f", with the effect of {name}, which is associated with the scanner" for name in confounded(table)
        )
        logger.warning(
            "%s: was harmonized in one go%s; compare with probe --harmonize, which does it in each fold",
            path.name,
            kept,
        )
    for name in table[label_columns(table)].select_dtypes(exclude=["number", "bool"]):
        is_missing = [isinstance(value, str) and value in MISSING_WORDS for value in table[name]]
        table[name] = table[name].mask(np.array(is_missing))
    return table


def check_width(table: pd.DataFrame, path: Path) -> None:
    """Refuse a CSV whose rows are longer than its header: pandas takes the first cells for an index, and shifts."""
    if path.suffix.lower() == ".csv" and not isinstance(table.index, pd.RangeIndex):
        raise CohortError(f"{path.name}: its rows have more cells than its header; write the table again")


def case_ids(table: pd.DataFrame, name: str) -> list[str]:
    """The ids of a table's cases as text, of which each must be unique; ``name`` is that of the table."""
    if "id" not in table or table["id"].astype(str).duplicated().any():
        raise CohortError(f"{name}: has no column id with a unique name for each case; keep one row per case")
    return table["id"].astype(str).tolist()


def _read_csv(path: Path) -> pd.DataFrame:
    header = pd.read_csv(path, nrows=0)
    labels, text_columns = label_columns(header), ("id", "file_name", "patient")
    texts = {name: str for name in map(str, header) if name in (*labels, *text_columns)}
    missing = {name: list(MISSING_WORDS) for name in map(str, header) if name not in texts}  # an id may be NA
    table = pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=missing)
    columns = {name: [cell.strip() for cell in table[name]] for name in labels}
    for name, values in as_labels(columns).items():  # as in a cohort, where 001 and 01 are two classes
        table[name] = pd.Series(values, dtype=object).infer_objects()
    return table


def read_metadata(path: PathLike) -> dict[str, Any]:
    """Read what a table was made with, without its rows: its own metadata (Parquet), or the record beside it (CSV)."""
    path, metadata = Path(path), {}
    # another tool may have written the table
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        if path.suffix.lower() != ".csv":
            attributes = json.loads((read_schema(path).metadata or {})[b"PANDAS_ATTRS"])
            metadata = dict(attributes["monai_diffae"])
        elif (content := json.loads(path.with_suffix(".json").read_text()))["complete"]:
            figures = {name: content["figures"][name] for name in _FIGURES if name in content["figures"]}
            metadata = {"made_from": content["made_from"], **figures}
        dict(metadata.get("made_from", {}).get("overrides") or {})  # they have their types, or no record is read
        float(metadata.get("z_sem_usage") or 0)
        return metadata
    return {}


def rows_sample(table: pd.DataFrame) -> str:
    """The 100 smallest hashes of z_sem in the rows, by which :func:`has_sampled_rows` recognises the table."""
    return " ".join(_row_hashes(table)[:_MOST_SAMPLED])


def has_sampled_rows(path: PathLike, sample: str) -> bool:
    """Whether the z_sem of a table are those that a sample was taken of, or a part of them, whatever their order."""
    sampled, hashes = set(sample.split()), _row_hashes(read_embeddings(path))
    last = max(sampled) if len(sampled) == _MOST_SAMPLED else "g"  # with fewer, all rows were sampled
    others = [each for each in hashes if each < last and each not in sampled]
    return not others or not sampled.isdisjoint(hashes)


def _row_hashes(table: pd.DataFrame) -> list[str]:
    return sorted(digest(row)[:12] for row in z_matrix(table).astype("<f4"))


def patient_key_name(table: pd.DataFrame) -> str | None:
    """The name of the key with which a table's patients were hashed; None if they were not hashed with a key."""
    name = table.attrs.get("monai_diffae", {}).get("patient_key")
    return name if isinstance(name, str) else None


def encoder_name(table: pd.DataFrame) -> str:
    """The encoder that made a table: ``trained`` (also if not recorded), one without training, or ``harmonized``."""
    return str(_made_from(table).get("encoder", "trained"))


def source_encoder(table: pd.DataFrame) -> str:
    """The encoder that made a table, also if :func:`monai_diffae.harmonize` changed its features since."""
    return str(_made_from(table).get("source_encoder", encoder_name(table)))


def confounded(table: pd.DataFrame) -> list[str]:
    """The columns whose effect :func:`monai_diffae.harmonize` kept, although they are associated with the scanner."""
    return list(_made_from(table).get("confounded", []))


def _made_from(table: pd.DataFrame) -> dict[str, Any]:
    return dict(table.attrs.get("monai_diffae", {}).get("made_from", {}))


def has_common_scale(table: pd.DataFrame, features: Features = "z") -> bool:
    """Whether the columns are principal components: the last are noise, so no column is standardised on its own."""
    return features == "wide" or source_encoder(table) in COMMON_SCALE


def split_origin(table: pd.DataFrame) -> SplitOrigin | None:
    """Where a table's split is from; None if this was not recorded."""
    origin = table.attrs.get("monai_diffae", {}).get("split_origin")
    return next((known for known in get_args(SplitOrigin) if known == origin), None)


def numbered_columns(prefix: str, values: NDArray[np.floating[Any]]) -> dict[str, NDArray[np.float32]]:
    """The columns ``z_000``, ``z_001``... of a table, from values (N, D) in the order of its rows."""
    return {f"{prefix}_{i:03d}": column for i, column in enumerate(values.T.astype(np.float32))}


def z_columns(table: pd.DataFrame) -> list[str]:
    """The names of the columns with z_sem."""
    return [name for name in table.columns if _Z.fullmatch(name)]


def wide_columns(table: pd.DataFrame) -> list[str]:
    """The names of the columns with wide features, if there are any."""
    return [name for name in table.columns if _WIDE.fullmatch(name)]


def std_columns(table: pd.DataFrame) -> list[str]:
    """The names of the columns with the standard deviation of z_sem over a volume's slices, if there are any."""
    return [name for name in table.columns if _STD.fullmatch(name)]


def label_columns(table: pd.DataFrame) -> list[str]:
    """The names of the label columns: not z_sem, wide features, nor what describes the case, patch, map or twins."""
    patch_columns = _PATCH_COLUMNS if "patch" in table else ()
    map_columns = MAP_COLUMNS if "thumbnail" in table else ()
    vectors = (*z_columns(table), *wide_columns(table), *std_columns(table))
    others = {*_CASE_COLUMNS, *patch_columns, *map_columns, *vectors}
    return [name for name in table.columns if name not in others and not marks_twins(name, table[name])]


def check_labels(table: pd.DataFrame, options: Mapping[str, Sequence[str]]) -> list[str]:
    """The label columns of a table; those that options name must be among them."""
    labels = label_columns(table)
    for option, names in options.items():
        if unknown := [name for name in names if name not in labels]:
            known = ", ".join(labels) or "none"
            raise ConfigError(f"{option}: there is no label column '{unknown[0]}'; choose from: {known}")
    return labels


def z_matrix(table: pd.DataFrame) -> NDArray[np.float32]:
    """The z_sem (N, D) of a table, float32, in the order of its rows."""
    return matrix(table, "z")


def matrix(table: pd.DataFrame, features: Features) -> NDArray[np.float32]:
    """The z_sem or wide features (N, D) of a table, float32, in the order of its rows."""
    columns, prefix = (z_columns(table), "z") if features == "z" else (wide_columns(table), "w")
    if not columns:
        raise CohortError(f"features: the table has no columns {prefix}_000, ...; embed again with features {features}")
    num = table.attrs.get("monai_diffae", {}).get("z_channels") if features == "z" else None
    if [int(name[2:]) for name in columns] != [*range(num or len(columns))]:
        raise CohortError(f"the columns {prefix}_000, ... are incomplete or out of order; embed again")
    try:
        values = table[columns].to_numpy(np.float32)
    except (TypeError, ValueError):
        values = np.full((1, 1), np.nan, np.float32)
    if not np.isfinite(values).all():
        raise CohortError(f"the columns {prefix}_000, ... have values that are not finite numbers; embed again")
    return values


def patients_of(table: pd.DataFrame) -> NDArray[np.str_]:
    """The patient of each case, as text; the case itself where none is given."""
    cases = [f"case {case}" for case in (table["id"] if "id" in table else range(len(table)))]
    names = table["patient"] if "patient" in table else [None] * len(cases)
    pairs = zip(names, cases, strict=True)
    return np.array([case if pd.isna(name) or name == "" else str(name) for name, case in pairs], np.str_)


def knows_patients(table: pd.DataFrame) -> bool:
    """Whether the patients of nearly all cases are known, as far as is recorded."""
    return "patient" in table and bool(table.attrs.get("monai_diffae", {}).get("knows_patients", True))


def splits_of(table: pd.DataFrame) -> NDArray[np.str_]:
    """The split of each case; ``new`` if the table has no column ``split``."""
    return table["split"].to_numpy(str) if "split" in table else np.full(len(table), "new")


def split_rows(table: pd.DataFrame, split: str) -> pd.DataFrame:
    """The rows of a split: ``train``, ``val`` or ``test``."""
    rows = table[table["split"] == split] if "split" in table else table.iloc[:0]
    if rows.empty:
        raise CohortError(f"the embeddings have no case of the split '{split}'; embed a cohort that has one")
    return rows


def embeddings_fingerprint(table: pd.DataFrame) -> str:
    """SHA-256 of the z_sem and splits of a table, without ids and labels."""
    return digest(z_matrix(table).astype("<f4"), "\n".join(table["split"].astype(str)))


class EmbeddedCases:
    """The z_sem of one split as a data set of items ``{"z": (D,) float32, "index": position, "id": case}``.

    Args:
        table: the embeddings, with a column ``split``.
        split: ``train``, ``val`` or ``test``.
        transform: applied to z_sem (N, D), such as :meth:`LatentStatistics.normalise
            <monai_diffae.latents.statistics.LatentStatistics.normalise>`; None: z_sem as the encoder gives it.
        draws: number of items per case, each with an index of its own. In validation the noise is a function of the
            index, so a case is seen at several noise levels; and epochs over few cases become longer.

    Attributes:
        z: (N, D) float32, one row per case.

    Raises:
        CohortError: there is no column ``split``, or no such case.

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
        import torch

        rows = split_rows(table, split)
        z = z_matrix(rows)
        self.z = torch.tensor(z if transform is None else transform(z), dtype=torch.float32)
        self.ids = [str(case) for case in rows["id"]]
        self.draws = draws

    def __len__(self) -> int:
        return len(self.ids) * self.draws

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Any]:
        """Return the item at a position, or at (epoch, position), as a training loader uses it."""
        position = range(len(self))[index[1] if isinstance(index, tuple) else index]
        row = position // self.draws
        return {"z": self.z[row], "index": position, "id": self.ids[row]}


def training_rows(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table's training cases, or all rows if it has no column ``split``."""
    return split_rows(table, "train") if "split" in table else table


def read_training_rows(embeddings: PathLike) -> pd.DataFrame:
    """Read a table, and return its :func:`training_rows`."""
    table = read_embeddings(embeddings)
    try:
        return training_rows(table)
    except CohortError as error:
        raise CohortError(f"{Path(embeddings).name}: {error}") from error
