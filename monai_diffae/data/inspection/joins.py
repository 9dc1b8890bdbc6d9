"""Join the rows of a table of participants or scans to scans, by their ids, file names or BIDS subjects."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from monai_diffae.data.cases import MISSING_WORDS, Case, Label, as_labels
from monai_diffae.data.cohorts import read_columns
from monai_diffae.data.folders import BIDS_SUBJECT, name_within
from monai_diffae.data.formats.dicom import hash_patient
from monai_diffae.data.splits import SPLITS
from monai_diffae.errors import CohortError, quoted

ID_COLUMNS = (
    "file", "filename", "file_name", "image", "path", "scan_id", "image_id", "case_id", "case", "id", "participant_id",
    "subject", "subject_id", "subjectid", "mrid", "mri_id", "ixi_id", "patient_id", "patientid", "patient",
)  # fmt: skip
"""Usual names of the column with the ids; capitals do not matter. The one that fits most scans is used."""

_PATIENTS = (
    "patient", "patient_id", "patientid", "patient_key", "participant_id", "participant", "subject_id", "subject",
)  # fmt: skip
_SESSIONS = ("session_id", "session", "ses")
_MAX_EXAMPLES = 3

_SESSION = re.compile(r"(?:^|[/_])(ses-[A-Za-z0-9]+)")
_SUFFIX = re.compile(r"sub-.*_([A-Za-z0-9]+)")


@dataclass(frozen=True)
class Join:
    """A table joined to cases."""

    id_column: str  # the column with the ids
    rows: list[int | None]  # for each case the number of its row, or None
    columns: dict[str, list[str]]  # the cells of the table, as text, by column

    @property
    def names(self) -> list[str]:
        """Ids for scans with rows of their own: the column ``id`` if its values differ, else the joined column."""
        ids = self.columns.get("id", [""])
        return ids if all(ids) and len(set(ids)) == len(ids) else self.columns[self.id_column]

    def notes(self, table: str, cases: Sequence[Case]) -> Iterator[str]:
        """How many scans were joined, and which scans and rows have no counterpart."""
        ids = self.columns[self.id_column]
        without_row = [case.id for case, row in zip(cases, self.rows, strict=True) if row is None]
        without_scan = [ids[row] for row in sorted({*range(len(ids))}.difference(self.rows))]
        num_joined = len(cases) - len(without_row)
        yield f"{table}: {num_joined} of {len(cases)} scans have a row (joined by the column {self.id_column})"
        if without_row:
            yield f"{len(without_row)} scans have no row, so no labels: {_examples(without_row)}"
        if without_scan:
            yield f"{len(without_scan)} rows have no scan: {_examples(without_scan)}"


def join_table(cases: Sequence[Case], root: Path, table: Path, id_column: str | None = None) -> Join:
    """Find the row of each case in a table, by the first key of :func:`_keys` that some row has."""
    import pandas as pd

    columns = read_columns(table)
    names = [name_within(case.first_file, root) for case in cases]
    keys = pd.DataFrame(
        [(k, rank, _plain(key)) for k, case in enumerate(cases) for rank, key in _keys(case, names[k], root)],
        columns=["case", "rank", "key"],
    ).drop_duplicates()
    id_column = _id_column(table.name, columns, id_column, set(keys["key"]))
    has_sessions = any("session" in bids_details(name) for name in names)
    rows = _keyed_rows(table.name, columns, id_column, has_sessions=has_sessions)
    matches = keys.merge(rows, on="key").drop_duplicates(["case", "rank", "row"]).sort_values(["case", "rank", "row"])
    ids = columns[id_column]
    if matches.empty:
        classes = sorted({str(v) for case in cases for v in case.labels.values()}.intersection(rows["key"]))
        advice = "set id_column to another column"
        if classes:
            advice = f"if the folders {_examples(classes)} are not classes, use --no-labels-from-folders"
        raise CohortError(
            f"{table.name}: no id in the column {id_column} (e.g. {quoted(ids[0])}) fits a scan "
            f"(e.g. {quoted(cases[0].id)}); {advice}"
        )
    _check_folders(table.name, names, matches)
    best = matches[matches["rank"] == matches.groupby("case")["rank"].transform("min")]
    several = best[best.duplicated("case", keep=False)]
    if len(several):
        first, second = (ids[row][:40] for row in several["row"].tolist()[:2])
        raise CohortError(
            f"{table.name}: the rows {quoted(first)} and {quoted(second)} both fit the scan "
            f"{quoted(cases[several['case'].tolist()[0]].id)}; keep one"
        )
    _check_namesakes(table.name, cases, best[best["rank"] == 0])
    row_of = dict(zip(best["case"].tolist(), best["row"].tolist(), strict=True))
    return Join(id_column, [row_of.get(k) for k in range(len(cases))], columns)


def _id_column(table: str, columns: Mapping[str, Sequence[str]], given: str | None, keys: set[str]) -> str:
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


def _keyed_rows(table: str, columns: Mapping[str, Sequence[str]], id_column: str, *, has_sessions: bool) -> Any:
    """The numbers of the rows by id, or by id and session if the table and the scans have one: a data frame."""
    import pandas as pd

    names = _SESSIONS if has_sessions else ()
    session = next((columns[name] for name in names if name in columns and name != id_column), None)
    keys = [_plain(id) for id in columns[id_column]]
    if session is not None:
        keys = [f"{key}/ses-{each.removeprefix('ses-')}" for key, each in zip(keys, session, strict=True)]
    rows = pd.DataFrame({"key": keys, "row": range(len(keys))})[[bool(id) for id in columns[id_column]]]
    for key, group in rows[rows.duplicated("key", keep=False)].groupby("key", sort=False)["row"]:
        first, second = group.iloc[:2] + 1
        raise CohortError(f"{table}: the id {quoted(key)} is in the rows {first} and {second}; keep one row per id")
    # a DICOM scan is known by the hash of its PatientID
    return pd.concat([rows, rows.assign(key=rows["key"].map(hash_patient))])


def _check_folders(table: str, names: Sequence[str], matches: Any) -> None:
    """Raise an error if one row fits a scan's file name and another its folder, as for ``1/2`` in a table of 1, 2."""
    for case, group in matches[matches["rank"] < 2].groupby("case"):
        by_name, by_folder = group[group["rank"] == 0], group[group["rank"] == 1]
        is_apart = len(by_name) and len(by_folder) and not set(by_name["row"]) & set(by_folder["row"])
        if is_apart and not by_name["key"].str.contains("/").any():
            name = names[int(case)]
            raise CohortError(
                f"{table}: different rows fit the file name and the folder of {quoted(name)}; use ids with the folder, "
                f"such as {name[:60]}, or set id_column to another column"
            )


def _check_namesakes(table: str, cases: Sequence[Case], matches: Any) -> None:
    """Raise an error if a row names scans of several class folders or splits, such as ``benign/1`` and ``normal/1``."""
    first: dict[int, Case] = {}
    for k, row in zip(matches["case"].tolist(), matches["row"].tolist(), strict=True):
        case, other = cases[k], first.setdefault(row, cases[k])
        if (case.split, case.labels) != (other.split, other.labels):
            raise CohortError(
                f"{table}: the row {row + 1} fits the scans {quoted(other.id)} and {quoted(case.id)} of other folders; "
                "add the folder to the ids, e.g. benign/1"
            )


def _keys(case: Case, name: str, root: Path) -> Iterator[tuple[int, str]]:
    """The ids by which a table may call a case, with ranks: 0 its names; 1 subject, folders and DICOM; 2 beginnings."""
    path, stem = Path(os.path.relpath(case.first_file, root)).as_posix(), Path(name).name
    yield from ((0, key) for key in (case.id, name, path, stem, case.file))
    folders = set(Path(name).parts[:-1]) - set(case.labels.values())  # which are classes
    subject, session = BIDS_SUBJECT.search(name), bids_details(name).get("session")
    words = [subject[1], subject[1].removeprefix("sub-")] if subject else []
    with_session = [f"{word}/{session}" for word in words if session]
    yield from ((1, key) for key in (*words, *with_session, *folders))
    if not case.has_own_patient:
        yield 1, case.patient
    yield from ((2, stem[: match.start()]) for match in re.finditer(r"[_. -]+", stem) if match.start())


def _plain(id: str) -> str:
    """An id as another system writes it: paths of Windows, and letters such as ``ü`` of macOS."""
    return unicodedata.normalize("NFC", id).replace("\\", "/").removeprefix("./")


def with_roles(join: Join, table: str, names: Mapping[str, str]) -> tuple[Join, list[str]]:
    """The join with the columns of patients and splits under their standard names, and a line if one was guessed."""
    lines = []
    for role, usual in (("patient", _PATIENTS), ("split", ("split",))):
        guess = next((name for name in join.columns if name.lower() in usual and name != join.id_column), None)
        if guess is None or role in {*names, *join.columns}:
            continue
        if role == "patient" or all(c in MISSING_WORDS or c.lower() in SPLITS for c in join.columns[guess]):
            names = {**names, role: guess}
            lines.append(f"{role}{'s' if role == 'patient' else ''}: the column {guess} of {table}")
    for name in names.values():
        if name not in join.columns:
            raise CohortError(f"columns: {table} has no column {quoted(name)}; it has {', '.join(join.columns)[:120]}")
    roles = {name: role for role, name in names.items()}
    return replace(join, columns={roles.get(name, name): cells for name, cells in join.columns.items()}), lines


def with_rows(cases: Sequence[Case], join: Join, table: str) -> list[Case]:
    """The cases with the cells of their rows: labels, and the split and patient if the table has them."""
    others = {"image", "id", "patient", "split", join.id_column}
    labels = as_labels(
        {name: c for name, c in join.columns.items() if name not in others and name.lower() not in ("image", "id")}
    )
    clash = next((name for name in labels if any(name in case.labels for case in cases)), None)
    if clash is not None:
        raise CohortError(
            f"{table}: its column {quoted(clash)} is also found in the folders; set label_column to another name"
        )
    pairs = list(zip(cases, join.rows, strict=True))
    ids = Counter(case.id if row is None else join.names[row] for case, row in pairs)
    is_shared = max(ids.values()) > 1  # several scans of a row, several sessions, or a scan named as another row
    return [_with_row(case, row, join, labels, is_shared=is_shared) for case, row in pairs]


def _with_row(
    case: Case, row: int | None, join: Join, labels: Mapping[str, Sequence[Label]], *, is_shared: bool
) -> Case:
    """A case with its row: the labels; the split and patient; and the id, as patient if scans would share it."""
    values: dict[str, Label] = {name: None if row is None else column[row] for name, column in labels.items()}
    case = replace(case, labels={**case.labels, **values})
    if row is None:
        return case
    patient, split = (join.columns[name][row] if name in join.columns else "" for name in ("patient", "split"))
    if split not in MISSING_WORDS:
        if split.lower() not in SPLITS:
            raise CohortError(
                f"the row of {quoted(case.id)} has the unknown split {quoted(split)}; use train, val or test"
            )
        case = replace(case, split=SPLITS[split.lower()])
    id = join.columns[join.id_column][row]
    is_patient_id = case.patient == hash_patient(id)  # which stays in the DICOM files
    if patient not in MISSING_WORDS:
        case = replace(case, patient=patient)
    if is_patient_id:
        return case
    if not is_shared:
        name = join.names[row]
        return replace(case, id=name, patient=name if case.has_own_patient else case.patient)
    return replace(case, patient=id) if case.has_own_patient else case


def bids_details(name: str) -> dict[str, str]:
    """The session and the suffix in a path, for paths of BIDS."""
    if not BIDS_SUBJECT.search(name):
        return {}
    session, suffix = _SESSION.search(name), _SUFFIX.fullmatch(PurePath(name).name)
    details = {"session": session, "suffix": suffix}
    return {word: m[1] for word, m in details.items() if m and "-" not in m[1].removeprefix("ses-")}


def _examples(names: Sequence[str]) -> str:
    return ", ".join(name[:60] for name in names[:_MAX_EXAMPLES]) + (", ..." if len(names) > _MAX_EXAMPLES else "")
