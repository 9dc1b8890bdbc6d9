"""List the scans of a folder as a table: with labels from class folders, from a table of participants and from BIDS."""

import csv
import io
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

from monai_diffae.data.atomic import write_atomic
from monai_diffae.data.cases import (
    MISSING_WORDS,
    SPLITS,
    Case,
    Label,
    are_patients_known,
    as_labels,
    check_splits,
    label_names,
    share_known,
)
from monai_diffae.data.cohorts import (
    ID_COLUMNS,
    PATIENTS,
    cases_in_folder,
    compiled,
    read_cohort,
    read_columns,
    standard_split,
)
from monai_diffae.data.folders import BIDS_SUBJECT, names_within, relative_to, search_folder, short_names
from monai_diffae.data.formats.dicom import hash_patient
from monai_diffae.data.scans import may_be_dicom, scan_suffix
from monai_diffae.data.sequences import CLASS_WORDS, are_modalities, count_sequences
from monai_diffae.errors import CohortError, ConfigError, OtherResultsError, counted, quoted
from monai_diffae.lazy import on_first_use

with on_first_use:
    import pandas as pd

_MAX_CLASSES = 12  # most values of a label that are listed

_NO_CLASSES = re.compile(r"images?(?:Tr|Ts|Val)?$|scans?$|dicom", re.IGNORECASE)
_MOST_CLASS_FOLDERS = 50
_SERIES = re.compile(r"([^/]+)[-_ ]\d+\.[^/]*$")  # names that differ in their last number only
_FEWEST_SERIES, _MOST_SERIES = 10, 0.8  # fewer are classes; a number, and a share of the scans


def _num_series(paths: Sequence[str]) -> int:
    """The number of names without their last numbers, if they look like patients with several scans each; else 0."""
    series = {match[1] if (match := _SERIES.search(path)) else path for path in paths}
    return len(series) if _FEWEST_SERIES <= len(series) <= _MOST_SERIES * len(paths) else 0


@dataclass(frozen=True)
class Sources:
    """Where labels come from."""

    from_folders: bool | None = None  # take the names of folders as labels; None: if they look like classes
    label: str = "label"  # the name of the label column for the folders
    # a table with labels, which is joined to the scans; None: ``participants.tsv`` in the folder, if it is there
    table: Path | None = None
    id_column: str | None = None  # the column of the table that names scans or patients; None: found by its name
    patient_pattern: str | None = None  # a regular expression that finds the patient in the image's path


@dataclass(frozen=True)
class Listing:
    """The scans of a folder or table, with their labels."""

    name: str  # the folder or table
    cases: list[Case]  # the scans
    notes: list[str] = field(default_factory=list)  # one line for each thing that was found, decided or left out

    @property
    def formats(self) -> Counter[str]:
        """The number of scans of each format: a suffix, or ``DICOM``."""
        files = [case.path for case in self.cases]
        return Counter("DICOM" if may_be_dicom(file) else scan_suffix(file) for file in files)

    @property
    def labels(self) -> dict[str, Counter[Label]]:
        """For each label the number of scans with each value; None: missing."""
        return {name: Counter(case.labels.get(name) for case in self.cases) for name in label_names(self.cases)}

    @property
    def num_patients(self) -> int:
        """The number of patients."""
        return len({case.patient for case in self.cases})

    @property
    def splits(self) -> Counter[str | None]:
        """The number of scans in each split; None: not decided."""
        return Counter(case.split for case in self.cases)

    def figures(self) -> dict[str, Any]:
        """Counts and notes as plain values; of labels with many values only their number."""
        labels = {
            name: {str(value): count for value, count in values.items()} if len(values) <= _MAX_CLASSES else len(values)
            for name, values in self.labels.items()
        }
        splits = {str(name): count for name, count in self.splits.items()}
        return {
            "num_scans": len(self.cases),
            "num_patients": self.num_patients,
            "formats": dict(self.formats),
            "sequences": count_sequences(self.cases),
            "num_masks": sum(case.mask is not None for case in self.cases),
            "splits": splits,
            "labels": labels,
            "notes": self.notes,
        }

    def lines(self) -> Iterator[str]:
        """What was found, line by line."""
        formats = ", ".join(f"{count} {name}" for name, count in self.formats.most_common())
        yield f"{self.name}: {counted(len(self.cases), 'scan')} ({formats})"
        if are_patients_known(self.cases):
            yield f"patients: {self.num_patients}"
        else:
            known = "known of some scans only, so each other" if share_known(self.cases) else "not known, so each"
            yield f"patients: {known} scan counts as a patient (--patient-pattern finds them in the paths)"
            if num_series := _num_series([case.path for case in self.cases]):
                yield (
                    f"the names have {counted(num_series, 'beginning')} before a last number; if each is a patient, "
                    f"give --patient-pattern '{_SERIES.pattern}': else scores on test scans are too high"
                )
        if sequences := count_sequences(self.cases):
            counts = ", ".join(f"{name} ({count})" for name, count in sequences.items())
            yield f"{counted(len(sequences), 'sequence')}: {counts}"
        if num_masks := sum(case.mask is not None for case in self.cases):
            yield f"masks: {num_masks}"
        yield from self.notes
        if set(self.splits) != {None}:
            yield f"column split: {_counts({name or 'none': count for name, count in self.splits.items()})}"
        for name, values in self.labels.items():
            yield f"column {name}: {_described(values)}"


def list_cases(
    cohort: Path,
    sources: Sources = Sources(),
    columns: Mapping[str, str] | None = None,
    headers: Path | None = None,
) -> Listing:
    """List the scans of a cohort, with labels from its folders, from a table and from the names of BIDS.

    ``headers`` is a folder that keeps what was read of DICOM files, see :func:`search_folder`.
    """
    notes: list[str] = []
    is_folder = cohort.is_dir()
    root = cohort if is_folder else cohort.parent
    if is_folder:
        content = search_folder(cohort, headers)
        notes += content.left_out()
        cases = _with_plain_ids(cases_in_folder(cohort, content, compiled(sources.patient_pattern)), root)
    else:
        cases = read_cohort(cohort, columns=columns, patient_pattern=sources.patient_pattern)
    if sources.from_folders or (sources.from_folders is None and is_folder):
        cases, lines = _with_classes(cases, root, sources)
        notes += lines
    participants = cohort / "participants.tsv"
    table = sources.table or (participants if participants.is_file() else None)
    names = dict(columns or {}) if is_folder else {}  # of the table that is joined
    if table is not None:
        cases, lines = _with_table(cases, root, table, sources, names)
        notes += lines
    elif unused := "id_column" if sources.id_column else "columns" if names else "":
        raise ConfigError(f"{unused}: there is no table whose columns it could name; omit {unused}, or set table")
    name = cohort.name or cohort.resolve().name
    check_splits(cases, name)
    return Listing(name, _with_bids_details(cases, root), notes)


def write_listing(listing: Listing, path: Path, *, overwrite: bool = False) -> Path:
    """Write a listing as a table: one row per scan, with its path relative to the table, id and labels."""
    if path.suffix.lower() not in (".csv", ".tsv"):
        raise ConfigError(f"{path.name}: the table is a .csv or .tsv; choose such a name as out")
    content = _table_text(listing, path).encode()
    if path.exists() and not overwrite:
        if path.is_file() and path.read_bytes() == content:
            return path
        raise OtherResultsError(f"{path.name}: exists and has other content; set overwrite, or choose another out")
    return write_atomic(path, lambda temporary: temporary.write_bytes(content))


def _table_text(listing: Listing, path: Path) -> str:
    relative = relative_to(path.parent)
    files = [_files(case, relative) for case in listing.cases]
    keys = list(dict.fromkeys(key for each in files for key in each))
    labels = list(dict.fromkeys(name for case in listing.cases for name in case.labels))  # also the mark of twins
    is_known = {
        "id": True,
        "patient": not all(case.has_own_patient for case in listing.cases),
        "split": any(case.split is not None for case in listing.cases),
    }
    clash = next((name for name in labels if name in (*keys, *is_known)), None)
    if clash is not None:
        raise CohortError(f"a label is named {quoted(clash)}, like another column of the table; rename it")
    columns = [name for name, known in is_known.items() if known]
    counts = Counter(case.patient for case in listing.cases)
    stream = io.StringIO()
    table = csv.writer(stream, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", lineterminator="\n")
    table.writerow([*keys, *columns, *labels])
    for case, names in zip(listing.cases, files, strict=True):
        if case.has_own_patient and counts[case.patient] == 1:
            case = replace(case, patient="")
        values = (getattr(case, name) for name in columns)
        table.writerow([*(names.get(key, "") for key in keys), *values, *map(case.labels.get, labels)])
    return stream.getvalue()


def _files(case: Case, relative: Callable[[str], str]) -> dict[str, str]:
    """The paths of a case's images and mask from a folder, by their columns."""
    files = {**(case.sequences or case.images), **({"mask": case.mask} if case.mask else {})}
    return {name: relative(str(file)) for name, file in files.items()}


def _with_plain_ids(cases: list[Case], root: Path) -> list[Case]:
    """The cases with the names of their scans as ids, as they are: not made safe as file names."""
    ids = short_names(names_within((case.path for case in cases), root))
    if len(set(ids)) < len(ids):
        return cases
    return [
        replace(case, id=id, patient=id if case.has_own_patient else case.patient)
        for case, id in zip(cases, (c.id if c.sequences else id for c, id in zip(cases, ids, strict=True)), strict=True)
    ]


def _with_labels(cases: Sequence[Case], name: str, values: Sequence[Label]) -> list[Case]:
    return [replace(case, labels={**case.labels, name: value}) for case, value in zip(cases, values, strict=True)]


# -- the names of files and folders ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassFolders:
    """What the folders say about each scan."""

    classes: list[str | None]  # the class folder of each scan, or None; empty: there are no class folders
    splits: list[str | None]  # ``train``, ``val`` or ``test``, if folders have such names; empty: they do not


def find_class_folders(folders: Sequence[Sequence[str]], *, strict: bool = True) -> ClassFolders:
    """The classes and splits in the folders of scans: the highest level of folders that looks like classes."""
    num_levels = max((len(each) for each in folders), default=0) if not strict else min(map(len, folders), default=0)
    levels = [[each[level] if level < len(each) else None for each in folders] for level in range(num_levels)]
    splits: list[str | None] = []
    for names in levels:
        if strict and any(name is not None and name.startswith(("sub-", "ses-")) for name in names):
            break
        if all(name is not None and name.lower() in SPLITS for name in names):
            several = len(set(names)) > 1  # a folder ``train`` without ``test`` splits nothing
            splits = [SPLITS[name.lower()] for name in names if name is not None] if several else splits
        elif _are_classes(names) if strict else len(set(names)) > 1:
            return ClassFolders(names, splits)
    return ClassFolders([], splits)


def _are_classes(names: Sequence[str | None]) -> bool:
    folders = sorted({name for name in names if name is not None})
    return (
        2 <= len(folders) <= min(_MOST_CLASS_FOLDERS, len(names) // 2)
        and not any(_NO_CLASSES.match(folder) for folder in folders)
        and not are_modalities(re.split(r"[-_ ]", folder)[0] for folder in folders)
        and not _are_numbered(folders)
    )


def _are_numbered(folders: Sequence[str]) -> bool:
    """Whether the names differ in their numbers only, as patients do; grades (``0`` to ``4``) do not count."""
    shapes = Counter(re.sub(r"\d+", "#", folder) for folder in folders)
    shape, count = shapes.most_common(1)[0]
    if "#" not in shape or 2 * count <= len(folders):
        return False
    is_grades = len(folders) <= 10 and all(len(n) == 1 for folder in folders for n in re.findall(r"\d+", folder))
    is_class_name = shape.replace("#", "").strip(" _-").lower() in ("", *CLASS_WORDS)
    return not (is_grades and is_class_name)


def _with_classes(cases: Sequence[Case], root: Path, sources: Sources) -> tuple[list[Case], list[str]]:
    """The cases with the labels and splits of their folders, and lines that say what was found."""
    folders = [name.split("/")[:-1] for name in names_within((case.path for case in cases), root)]
    levels = find_class_folders(folders, strict=sources.from_folders is None)
    if sources.from_folders and not levels.classes:
        raise CohortError("labels_from_folders: the scans are not in two folders of one level; omit it, or set table")
    notes = []
    if levels.classes:
        names = ", ".join(sorted({name for name in levels.classes if name is not None})[:_MAX_CLASSES])
        notes.append(f"the folders {names} are classes: column {sources.label} (--no-labels-from-folders omits it)")
        cases = _with_labels(cases, sources.label, levels.classes)
    splits = [next((SPLITS[folder.lower()] for folder in each if folder.lower() in SPLITS), None) for each in folders]
    if levels.splits:
        notes.append("the folders train, val or test are the column split")
        cases = [replace(case, split=case.split or split) for case, split in zip(cases, levels.splits, strict=True)]
    elif None in splits and len(set(splits)) > 2:
        notes.append(
            "the folders train, val or test are no column split, because "
            f"{cases[splits.index(None)].id[:60]} is in none of them; move or remove such scans, or add a column split"
        )
    return list(cases), notes


def _with_bids_details(cases: list[Case], root: Path) -> list[Case]:
    """The cases with the session and suffix in their BIDS names as labels, if these differ and no table has them."""
    names = names_within((case.path for case in cases), root)
    details = [{} if case.sequences else bids_details(name) for case, name in zip(cases, names, strict=True)]
    for word in ("session", "suffix"):
        values = [each.get(word) for each in details]
        if len(set(values)) > 1 and not any(word in case.labels for case in cases):
            cases = _with_labels(cases, word, values)
    return cases


def _with_table(
    cases: list[Case], root: Path, table: Path, sources: Sources, names: dict[str, str]
) -> tuple[list[Case], list[str]]:
    """The cases with the cells of a table, and lines that say how they were joined."""
    join = join_table(cases, root, table, sources.id_column or names.pop("id", None), names.values())
    notes = list(join.notes(cases))
    join, lines = with_roles(join, names)
    is_double = sources.label in join.columns and any(sources.label in case.labels for case in cases)
    if is_double and sources.from_folders is None:
        lines.append(f"{table.name} has a column {sources.label}, so the folders are not used as labels")
        cases = [replace(case, labels={k: v for k, v in case.labels.items() if k != sources.label}) for case in cases]
    return with_rows(cases, join), notes + lines


# -- texts -------------------------------------------------------------------------------------------------------------


def _described(values: Mapping[Label, int]) -> str:
    missing = values.get(None, 0)
    present = {value: count for value, count in values.items() if value is not None}
    numbers = [value for value in present if isinstance(value, int | float)]
    if len(numbers) > _MAX_CLASSES or any(isinstance(number, float) for number in numbers):
        text = f"{min(numbers):g} to {max(numbers):g}"
    elif len(present) > _MAX_CLASSES:
        text = f"{len(present)} values"
    else:
        text = _counts(present)
    return f"{text}, {missing} missing" if missing else text


def _counts(counts: Mapping[Any, int]) -> str:
    return ", ".join(f"{count} {value}" for value, count in sorted(counts.items(), key=lambda item: str(item[0])))


# -- rows of a table ---------------------------------------------------------------------------------------------------


_SESSIONS = ("session_id", "session", "ses")
_MAX_EXAMPLES = 3

_SESSION = re.compile(r"(?:^|[/_])(ses-[A-Za-z0-9]+)")
_SUFFIX = re.compile(r"sub-.*_([A-Za-z0-9]+)")


@dataclass(frozen=True)
class Join:
    """A table joined to cases."""

    table: str  # its name
    id_column: str  # the column with the ids
    rows: list[int | None]  # for each case the number of its row, or None
    columns: dict[str, list[str]]  # the cells of the table, as text, by column

    @property
    def names(self) -> list[str]:
        """Ids for scans with rows of their own: the column ``id`` if its values differ, else the joined column."""
        ids = self.columns.get("id", [""])
        return ids if all(ids) and len(set(ids)) == len(ids) else self.columns[self.id_column]

    def notes(self, cases: Sequence[Case]) -> Iterator[str]:
        """How many scans were joined, and which scans and rows have no counterpart."""
        ids = self.columns[self.id_column]
        without_row = [case.id for case, row in zip(cases, self.rows, strict=True) if row is None]
        without_scan = [ids[row] for row in sorted({*range(len(ids))}.difference(self.rows))]
        num_joined = len(cases) - len(without_row)
        scans = counted(len(cases), "scan")
        yield f"{self.table}: {num_joined} of {scans} have a row (joined by the column {self.id_column})"
        if without_row:
            yield f"{counted(len(without_row), 'scan')} without a row, so without labels: {_examples(without_row)}"
        if without_scan:
            yield f"{counted(len(without_scan), 'row')} without a scan: {_examples(without_scan)}"


def join_table(
    cases: Sequence[Case], root: Path, table: Path, id_column: str | None = None, names: Collection[str] = ()
) -> Join:
    """Find the row of each case in a table, by the first key of :func:`_keys` that some row has.

    ``names`` are other columns that hold no numbers.
    """
    columns = read_columns(table, (id_column or "", *names))
    scans = names_within((case.path for case in cases), root)
    keys = pd.DataFrame(
        [(k, rank, _plain(key)) for k, case in enumerate(cases) for rank, key in _keys(case, scans[k], root)],
        columns=["case", "rank", "key"],
    ).drop_duplicates()
    id_column = _id_column(table.name, columns, id_column, set(keys["key"]))
    has_sessions = any("session" in bids_details(scan) for scan in scans)
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
    _check_folders(table.name, scans, matches)
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
    return Join(table.name, id_column, [row_of.get(k) for k in range(len(cases))], columns)


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


def with_roles(join: Join, names: Mapping[str, str]) -> tuple[Join, list[str]]:
    """The join with the columns of patients and splits under their standard names, and a line if one was guessed."""
    lines = []
    for role, usual in (("patient", PATIENTS), ("split", ("split",))):
        guess = next((name for name in join.columns if name.lower() in usual and name != join.id_column), None)
        if guess is None or role in {*names, *join.columns}:
            continue
        if role == "patient" or all(c in MISSING_WORDS or c.lower() in SPLITS for c in join.columns[guess]):
            names = {**names, role: guess}
            lines.append(f"{role}{'s' if role == 'patient' else ''}: the column {guess} of {join.table}")
    for name in names.values():
        if name not in join.columns:
            known = ", ".join(join.columns)[:120]
            raise CohortError(f"columns: {join.table} has no column {quoted(name)}; it has {known}")
    roles = {name: role for role, name in names.items()}
    return replace(join, columns={roles.get(name, name): cells for name, cells in join.columns.items()}), lines


def with_rows(cases: Sequence[Case], join: Join) -> list[Case]:
    """The cases with the cells of their rows: labels, and the split and patient if the table has them."""
    paths = {name for name, cells in join.columns.items() if any(map(scan_suffix, cells))}
    others = {"image", "id", "patient", "split", join.id_column, *paths}
    labels = as_labels(
        {name: c for name, c in join.columns.items() if name not in others and name.lower() not in ("image", "id")}
    )
    clash = next((name for name in labels if any(name in case.labels for case in cases)), None)
    if clash is not None:
        raise CohortError(f"{join.table}: its column {quoted(clash)} is also a folder's label; set label_column")
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
        case = replace(case, split=standard_split(join.table, case.id, split))
    id = join.columns[join.id_column][row]
    is_patient_id = case.patient == hash_patient(id)  # which stays in the DICOM files
    if patient not in MISSING_WORDS:
        case = replace(case, patient=unicodedata.normalize("NFKC", patient))
    if is_patient_id:
        return case
    if not is_shared:
        name = case.id if scan_suffix(join.names[row]) else join.names[row]  # a file's name is an id without its suffix
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
