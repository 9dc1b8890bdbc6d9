"""Read tables and datalists: each row has images, and perhaps id, patient, split and labels."""

from __future__ import annotations

import csv
import difflib
import json
import logging
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai_diffae.data.cases import MISSING_WORDS, Images, Label, as_labels, first_file
from monai_diffae.data.formats.scan import warn_once
from monai_diffae.data.scans import scan_suffix
from monai_diffae.errors import CohortError, shortened

logger = logging.getLogger(__name__)

COLUMN_ROLES = ("id", "patient", "split")
"""The standard column names besides the image keys."""


_DECIMAL_COMMA = re.compile(r"([+-]?\d+),(\d+)")


@dataclass(frozen=True)
class Row:
    """One row of a table, or one scan of a folder."""

    images: dict[str, Images]
    id: str | None = None
    patient: str | None = None
    split: str | None = None
    labels: dict[str, Label] = field(default_factory=dict)

    @property
    def first(self) -> Path:
        """The first file of ``"image"``."""
        return first_file(self.images)


def read_table(path: Path, columns: Mapping[str, str], image_keys: tuple[str, ...]) -> list[Row]:
    """Read a CSV (comma or semicolon) or TSV with a header; ``columns`` are its names for the columns that we know."""
    header, lines = _read_lines(path)
    names = {role: columns.get(role, role) for role in (*image_keys, *COLUMN_ROLES)}
    for role, name in names.items():
        if name not in header and (role in image_keys or role in columns):
            guess = _guess_image_column(path, header, lines) if role in image_keys else _closest(name, header)
            advice = f"set columns, e.g. {role}={guess} (in a bundle run --columns#{role} {guess})"
            if guess is None:
                advice = f"join it to its scans: monai-diffae list-scans FOLDER scans.csv --table {path.name}"
            raise CohortError(_shortened(f'{path.name}: no column "{name}" (has ', ", ".join(header), f"); {advice}"))
    if not lines:
        raise CohortError(f"{path.name}: the table has no rows; add one row per scan")
    for role in COLUMN_ROLES:
        similar = next((name for name in header if name.lower() == role and name not in names.values()), None)
        if similar is not None and role not in header:
            logger.warning(
                "%s: the column %s is a label; set columns %s=%s if it is not", path.name, similar, role, similar
            )
    cells = {name: [line[i].strip() if i < len(line) else "" for line in lines] for i, name in enumerate(header)}
    labels = as_labels({name: column for name, column in cells.items() if name and name not in names.values()})
    rows = []
    for i in range(len(lines)):
        images: dict[str, Images] = {k: path.parent / cells[names[k]][i] for k in image_keys if cells[names[k]][i]}
        if len(images) < len(image_keys):
            missing = next(k for k in image_keys if k not in images)
            raise CohortError(
                f'{path.name}: row {i + 1} has no file in column "{names[missing]}"; fill it or remove the row'
            )
        standard = {role: cells[names[role]][i] or None for role in COLUMN_ROLES if names[role] in cells}
        rows.append(Row(images, **standard, labels={name: column[i] for name, column in labels.items()}))
    return rows


def read_datalist(path: Path, columns: Mapping[str, str], image_keys: tuple[str, ...]) -> list[Row]:
    """Read a MONAI datalist: lists of entries under ``training``, ``validation``, ``test``, or a single list.

    An entry is a path, or a mapping with ``image``: a path, or a list with one path per channel. Other keys with
    numbers or text are labels; those with lists or mappings are ignored with a warning.
    """
    entries = _read_entries(path)
    rows = [_entry(path, section, n, entry, columns, image_keys) for section, n, entry in entries]
    mappings = [entry for *_, entry in entries if isinstance(entry, dict)]
    nested = {key for entry in mappings for key, value in entry.items() if isinstance(value, (list, dict))}
    nested -= {columns.get(role, role) for role in (*image_keys, *COLUMN_ROLES)}
    if nested:
        logger.warning(
            "%s: lists and mappings cannot be labels, so these are ignored: %s; give each value a key of its own",
            path.name, ", ".join(sorted(nested)),
        )  # fmt: skip
    return rows


def _entry(
    path: Path, section: str, n: int, entry: Any, columns: Mapping[str, str], image_keys: tuple[str, ...]
) -> Row:
    entry = {columns.get("image", "image"): entry} if isinstance(entry, str) else entry
    names = {role: columns.get(role, role) for role in (*image_keys, *COLUMN_ROLES)}
    images: dict[str, Images] = {}
    for key in image_keys:
        value = entry.get(names[key]) if isinstance(entry, dict) else None
        files: list[Any] = value if isinstance(value, list) else [value]
        if not files or not all(isinstance(f, str) and f for f in files):
            entry_name = f"{section or 'entry'} {n + 1}"
            raise CohortError(f'{path.name}: {entry_name} has no "{names[key]}" path; add it, or set columns')
        images[key] = tuple(path.parent / f for f in files) if isinstance(value, list) else path.parent / files[0]
    values = {role: entry.get(names[role]) for role in COLUMN_ROLES}
    # pandas writes NaN for missing values
    texts = {role: str(value) for role, value in values.items() if value is not None and value == value}
    texts.setdefault("split", section)
    others = {k: v for k, v in entry.items() if k not in names.values()}
    plain = {k: v for k, v in others.items() if v is None or isinstance(v, (str, int, float))}
    labels = {k: None if str(v).strip() in MISSING_WORDS else v for k, v in plain.items()}
    return Row(images, texts.get("id"), texts.get("patient"), texts["split"] or None, labels)


def column_names(path: Path) -> list[str]:
    """The column names of a CSV or TSV, or the keys of a datalist's entries."""
    if path.suffix.lower() != ".json":
        return _read_lines(path)[0]
    entries = [entry for _, _, entry in _read_entries(path) if isinstance(entry, dict)]
    return list(dict.fromkeys(key for entry in entries for key in entry))


def check_is_text(path: Path) -> None:
    """Raise an error if a table is an Excel file."""
    if path.suffix.lower() in (".xlsx", ".xls", ".xlsm", ".ods") and path.is_file():
        raise CohortError(f"{path.name}: Excel files are not read; save it as CSV, and give that file")


def read_columns(path: Path) -> dict[str, list[str]]:
    """The cells of a CSV or TSV, as text without surrounding spaces, by column."""
    check_is_text(path)
    if not path.is_file() or path.suffix.lower() not in (".csv", ".tsv", ".txt"):
        raise CohortError(f"{path.name}: there is no such CSV or TSV; check the path of the table")
    header, lines = _read_lines(path)
    if not lines:
        raise CohortError(f"{path.name}: the table has no rows; add one row per scan or patient")
    return {name: [line[i].strip() if i < len(line) else "" for line in lines] for i, name in enumerate(header) if name}


def _read_entries(path: Path) -> list[tuple[str, int, Any]]:
    """Section, number and content of each entry of a datalist."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CohortError(f"{path.name}: this is not JSON ({error}); repair the file") from error
    sections = {"": content} if isinstance(content, list) else content
    if not isinstance(sections, dict):
        raise CohortError(f"{path.name}: expected a list of entries, or lists under training, validation and test")
    section_names = ("", "training", "train", "validation", "val", "test", "testing")
    entries = [
        (section, n, entry)
        for section in section_names
        if isinstance(sections.get(section), list)
        for n, entry in enumerate(sections[section])
    ]
    if not entries:
        keys = ", ".join(map(str, sections)) or "nothing"
        raise CohortError(
            _shortened(f"{path.name}: no entries under training, validation or test (has ", keys, "); add them")
        )
    return entries


def _read_lines(path: Path) -> tuple[list[str], list[list[str]]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            first_line = stream.readline()
            stream.seek(0)
            delimiter = _delimiter(path, first_line)
            reader = csv.reader(stream, delimiter=delimiter)
            numbered = [(reader.line_num, line) for line in reader if any(line)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise CohortError(f"{path.name}: this is not a table in UTF-8 ({error}); save it as CSV again") from error
    except OSError as error:
        raise CohortError(f"{path.name}: cannot be read ({error.strerror}); check its permissions") from error
    if not numbered:
        raise CohortError(f"{path.name}: the table is empty; it needs a header with a column image, and rows")
    header, rows = [name.strip() for name in numbered[0][1]], [line for _, line in numbered[1:]]
    _check_cells(path, header, numbered[1:])
    if delimiter == ";":  # written by a program in whose language 1,5 is a number
        rows = [[_DECIMAL_COMMA.sub(r"\1.\2", cell) if _DECIMAL_COMMA.fullmatch(cell.strip()) else cell for cell in row]
                for row in rows]  # fmt: skip
    return header, rows


def _check_cells(path: Path, header: list[str], numbered: list[tuple[int, list[str]]]) -> None:
    """Raise an error if two columns have one name or a cell has no column; warn if lines have too few cells."""
    # The first column may have no name: pandas writes the numbers of the rows so.
    double = next((name for name, count in Counter(header).items() if name and count > 1), None)
    if double is not None:
        raise CohortError(_shortened(f"{path.name}: two columns are called '", double, "'; rename one"))
    nameless = [i for i, name in enumerate(header) if i and not name]
    for number, line in numbered:
        if any(cell.strip() for cell in line[len(header) :]):
            raise CohortError(
                f"{path.name}: line {number} has {len(line)} cells, but there are {len(header)} columns; put text that "
                "contains the separator in quotes"
            )
        if any(line[i].strip() for i in nameless if i < len(line)):
            raise CohortError(
                f"{path.name}: line {number} has a value in a column without a name; name the column, or put text that "
                "contains the separator in quotes"
            )
    width = max((i + 1 for i, name in enumerate(header) if name), default=0)
    short = [(number, len(line)) for number, line in numbered if len(line) < width]
    if short:
        others = f" (and {len(short) - 1} more lines are short)" if len(short) > 1 else ""
        number, num_cells = short[0]
        warn_once(
            path,
            f"line {number} has {num_cells} cells, but there are {width} columns{others}; the missing cells count as "
            "empty, so check that the table is complete",
        )


def _delimiter(path: Path, first_line: str) -> str:
    if path.suffix.lower() == ".tsv" or ("\t" in first_line and "," not in first_line):
        return "\t"
    return ";" if ";" in first_line and "," not in first_line else ","


def _guess_image_column(path: Path, header: list[str], lines: list[list[str]]) -> str | None:
    """The column that holds paths of scans, for the advice in an error; None: there is none."""
    first_line = dict(zip(header, map(str.strip, lines[0]), strict=False)) if lines else {}
    return next((name for name, cell in first_line.items() if cell and _is_scan(path.parent / cell)), None)


def _is_scan(path: Path) -> bool:
    return bool(scan_suffix(path)) or (
        path.name != "" and path.exists() and path.suffix.lower() not in (".csv", ".tsv")
    )


def _closest(name: str, header: list[str]) -> str:
    """The column whose name is most like a name, for the advice in an error."""
    return next(iter(difflib.get_close_matches(name, header, n=1, cutoff=0.0)), "file")


def _shortened(start: str, middle: str, end: str) -> str:
    """Join the three, with ``middle`` cut so that the whole has at most 200 characters."""
    return f"{start}{shortened(middle, 200 - len(start) - len(end))}{end}"
