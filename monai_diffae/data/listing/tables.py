"""Write a listing as a cohort table."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

from monai_diffae.data.atomic import write_atomic
from monai_diffae.data.cases import Case, Images
from monai_diffae.data.listing.listings import Listing
from monai_diffae.errors import CohortError, ConfigError, quoted

_COLUMNS = ("id", "patient", "split")


def write_listing(listing: Listing, path: Path, *, overwrite: bool = False) -> Path:
    """Write a listing as a table: one row per scan, with its path relative to the table, id, patient, split and labels.

    Args:
        listing: the scans.
        path: a ``.csv`` or ``.tsv``.
        overwrite: replace another file.

    Returns:
        ``path``. A table that is the same already is not written again.

    Raises:
        ConfigError: ``path`` has another suffix, or is another file and ``overwrite`` is False.
        CohortError: an image has several files, or a label is named like another column.
        MachineError: the disk is full, or the folder cannot be written.
    """
    if path.suffix.lower() not in (".csv", ".tsv"):
        raise ConfigError(f"{path.name}: the table is a .csv or .tsv; choose such a name as out")
    text = _text(listing, path)
    if path.exists() and not overwrite:
        if path.is_file() and path.read_bytes() == text.encode():
            return path
        raise ConfigError(f"{path.name}: exists and has other content; set overwrite, or choose another out")
    return write_atomic(path, lambda temporary: temporary.write_bytes(text.encode()))


def _text(listing: Listing, path: Path) -> str:
    keys, labels = list(listing.cases[0].images), list(listing.labels)
    clash = next((name for name in labels if name in (*keys, *_COLUMNS)), None)
    if clash is not None:
        raise CohortError(f"a label is named {quoted(clash)}, like another column of the table; rename it")
    is_known = {
        "patient": not all(case.has_own_patient for case in listing.cases),
        "split": any(case.split is not None for case in listing.cases),
    }
    columns = [name for name in _COLUMNS if is_known.get(name, True)]
    stream = io.StringIO()
    table = csv.writer(stream, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", lineterminator="\n")
    table.writerow([*keys, *columns, *labels])
    for case in listing.cases:
        files = [_relative(case, case.images[key], path.parent) for key in keys]
        cells = [getattr(case, name) for name in columns]
        values = [case.labels.get(name) for name in labels]
        table.writerow([*files, *cells, *("" if value is None else value for value in values)])
    return stream.getvalue()


def _relative(case: Case, image: Images, folder: Path) -> str:
    if not isinstance(image, Path):
        raise CohortError(
            f"{case.id}: has {len(image)} files, one per channel, which a table cannot list; use the datalist"
        )
    return Path(os.path.relpath(image, folder)).as_posix()
