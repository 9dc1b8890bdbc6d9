"""Join the rows of a table of participants or scans to scans, by their ids, file names or BIDS subjects."""

from __future__ import annotations

import itertools
import os
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from monai_diffae.data.cases import Case
from monai_diffae.data.folders import name_within
from monai_diffae.data.formats.dicom import hash_patient
from monai_diffae.data.listing import bids
from monai_diffae.data.tables import read_columns
from monai_diffae.errors import CohortError, quoted

ID_COLUMNS = (
    "file", "filename", "file_name", "image", "path", "scan_id", "image_id", "case_id", "case", "id", "participant_id",
    "subject", "subject_id", "subjectid", "mrid", "mri_id", "ixi_id", "patient_id", "patientid", "patient",
)  # fmt: skip
"""Usual names of the column with the ids; capitals do not matter. The one that fits most scans is used."""

_SESSIONS = ("session_id", "session", "ses")
_MAX_EXAMPLES = 3


@dataclass(frozen=True)
class Join:
    """A table joined to cases.

    Attributes:
        id_column: the column with the ids.
        rows: for each case the number of its row, or None.
        columns: the cells of the table, as text, by column.
    """

    id_column: str
    rows: list[int | None]
    columns: dict[str, list[str]]

    @property
    def names(self) -> list[str]:
        """Ids for scans with rows of their own: the column ``id`` if its values differ, else the joined column."""
        own = self.columns.get("id", [""])
        return own if all(own) and len(set(own)) == len(own) else self.columns[self.id_column]

    def notes(self, table: str, cases: Sequence[Case]) -> Iterator[str]:
        """How many scans were joined, and which scans and rows have no counterpart."""
        matched = {row for row in self.rows if row is not None}
        num_joined = sum(row is not None for row in self.rows)
        ids = self.columns[self.id_column]
        yield f"{table}: {num_joined} of {len(cases)} scans have a row (joined by the column {self.id_column})"
        without_row = [case.id for case, row in zip(cases, self.rows, strict=True) if row is None]
        if without_row:
            yield f"{len(without_row)} scans have no row, so no labels: {_examples(without_row)}"
        without_scan = [ids[row] for row in range(len(ids)) if row not in matched]
        if without_scan:
            yield f"{len(without_scan)} rows have no scan: {_examples(without_scan)}"


def join_table(cases: Sequence[Case], root: Path, table: Path, id_column: str | None = None) -> Join:
    """Find the row of each case in a table.

    The first of these that some row has for a case decides: its id, path or file name, with or without suffix; its
    BIDS subject (``sub-01`` or ``01``; with the session, if the table has one), a folder in which it lies, or its DICOM
    PatientID; the beginning of its file name, up to a separator. A row may have several cases. Folders that are classes
    are no ids.

    Args:
        cases: the scans.
        root: the folder that was searched.
        table: a CSV or TSV.
        id_column: the column with the ids; None: one of :data:`ID_COLUMNS`.

    Raises:
        CohortError: there is no such column, an id occurs twice, two rows fit one scan, or no row fits a scan.
    """
    columns = read_columns(table)
    keys = [[{_plain(key) for key in group} for group in _keys(case, root)] for case in cases]
    id_column = _id_column(table.name, columns, id_column, set().union(*itertools.chain.from_iterable(keys)))
    rows = _rows_by_key(table.name, columns, id_column, has_sessions=any(_has_session(case, root) for case in cases))
    _check_folders(table.name, cases, keys, rows, root)
    matches = [_row(table.name, case, each, rows, columns[id_column]) for case, each in zip(cases, keys, strict=True)]
    _check_namesakes(table.name, cases, [next((rows[key] for key in each[0] if key in rows), None) for each in keys])
    if all(row is None for row in matches):
        classes = sorted({str(label) for case in cases for label in case.labels.values() if str(label) in rows})
        advice = "set id_column to another column"
        if classes:
            advice = f"if the folders {_examples(classes)} are not classes, use --no-labels-from-folders"
        raise CohortError(
            f"{table.name}: no id in the column {id_column} (e.g. {quoted(columns[id_column][0])}) fits a scan "
            f"(e.g. {quoted(cases[0].id)}); {advice}"
        )
    return Join(id_column, matches, columns)


def _id_column(table: str, columns: Mapping[str, Sequence[str]], given: str | None, keys: Collection[str]) -> str:
    """The column that was given, or the one with a usual name whose ids fit most scans."""
    if given is not None:
        if given not in columns:
            raise CohortError(f"id_column: {table} has no column {quoted(given)}; it has {', '.join(columns)[:120]}")
        return given
    by_name = {name.lower().replace(" ", "_"): name for name in reversed(list(columns))}
    guesses = [by_name[name] for name in ID_COLUMNS if name in by_name]
    if not guesses:
        raise CohortError(f"{table}: set id_column to the column that names the scans: {', '.join(columns)[:120]}")
    return max(guesses, key=lambda name: sum(_plain(id) in keys for id in columns[name]))


def _rows_by_key(
    table: str, columns: Mapping[str, Sequence[str]], id_column: str, *, has_sessions: bool
) -> dict[str, int]:
    """The rows by id, or by id and session if the table and the scans have one."""
    names = _SESSIONS if has_sessions else ()
    session = next((name for name in names if name in columns and name != id_column), None)
    rows: dict[str, int] = {}
    for row, id in enumerate(map(_plain, columns[id_column])):
        key = id if session is None else f"{id}/{_with_prefix('ses', columns[session][row])}"
        if key in rows:
            raise CohortError(
                f"{table}: the id {quoted(key)} is in the rows {rows[key] + 1} and {row + 1}; keep one row per id"
            )
        if id:
            rows[key] = rows[hash_patient(key)] = row  # a DICOM scan is known by the hash of its PatientID
    return rows


def _row(table: str, case: Case, keys: Sequence[Set[str]], rows: Mapping[str, int], ids: Sequence[str]) -> int | None:
    for group in keys:
        found = sorted({rows[key] for key in group if key in rows})
        if len(found) > 1:
            first, second = (ids[row][:40] for row in found[:2])
            raise CohortError(
                f"{table}: the rows {quoted(first)} and {quoted(second)} both fit the scan {quoted(case.id)}; keep one"
            )
        if found:
            return found[0]
    return None


def _check_namesakes(table: str, cases: Sequence[Case], matches: Sequence[int | None]) -> None:
    """Raise an error if a row names scans of several class folders or splits, such as ``benign/1`` and ``normal/1``."""
    first: dict[int, Case] = {}
    for case, row in zip(cases, matches, strict=True):
        if row is None:
            continue
        other = first.setdefault(row, case)
        if (case.split, case.labels) != (other.split, other.labels):
            raise CohortError(
                f"{table}: the row {row + 1} fits the scans {quoted(other.id)} and {quoted(case.id)} of other folders; "
                "add the folder to the ids, e.g. benign/1"
            )


def _check_folders(
    table: str, cases: Sequence[Case], keys: Sequence[Sequence[Set[str]]], rows: Mapping[str, int], root: Path
) -> None:
    """Raise an error if one row fits a scan's file name and another its folder, as for ``1/2`` in a table of 1, 2."""
    for case, (own, folders, _) in zip(cases, keys, strict=True):
        by_name, by_folder = ({rows[key] for key in group if key in rows} for group in (own, folders))
        is_named_with_folder = any("/" in key and key in rows for key in own)
        if by_name and by_folder and not by_name & by_folder and not is_named_with_folder:
            name = name_within(case.first_file, root)
            raise CohortError(
                f"{table}: different rows fit the file name and the folder of {quoted(name)}; use ids with the folder, "
                f"such as {name[:60]}, or set id_column to another column"
            )


def _keys(case: Case, root: Path) -> Iterator[set[str]]:
    """The ids by which a table may call a case, the closest first."""
    file = case.first_file
    name = name_within(file, root)
    path, stem = Path(os.path.relpath(file, root)).as_posix(), Path(name).name
    yield {case.id, name, path, stem, case.file}
    folders = set(Path(name).parts[:-1]) - set(case.labels.values())  # which are classes
    yield {*_subject_keys(name), *folders, *([] if case.has_own_patient else [case.patient])}
    yield {stem[: match.start()] for match in re.finditer(r"[_. -]+", stem) if match.start()}


def _subject_keys(name: str) -> set[str]:
    subject = bids.subject(name)
    if subject is None:
        return set()
    session = bids.details(name).get("session")
    words = {subject, subject.removeprefix("sub-")}
    return words | {f"{word}/{session}" for word in words} if session else words


def _has_session(case: Case, root: Path) -> bool:
    return "session" in bids.details(name_within(case.first_file, root))


def _plain(id: str) -> str:
    """An id as another system writes it: paths of Windows, and letters such as ``ü`` of macOS."""
    return unicodedata.normalize("NFC", id).replace("\\", "/").removeprefix("./")


def _with_prefix(prefix: str, value: str) -> str:
    return value if value.startswith(f"{prefix}-") else f"{prefix}-{value}"


def _examples(names: Sequence[str]) -> str:
    return ", ".join(name[:60] for name in names[:_MAX_EXAMPLES]) + (", ..." if len(names) > _MAX_EXAMPLES else "")
