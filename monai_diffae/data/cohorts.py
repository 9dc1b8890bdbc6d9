"""Read a cohort: a folder, a single scan, a table or a MONAI datalist becomes a list of cases."""

import csv
import difflib
import gc
import json
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from monai_diffae.data.cases import SPLITS, Case, Images, as_labels, cases_of_one_file, check_splits, safe_names
from monai_diffae.data.folders import (
    BIDS_SUBJECT,
    TIDY,
    FolderContent,
    names_within,
    relative_to,
    search_folder,
    short_names,
)
from monai_diffae.data.formats import dicom
from monai_diffae.data.formats.scan import warn_once
from monai_diffae.data.scans import SUFFIXES, may_be_dicom, scan_suffix
from monai_diffae.data.sequences import channel_names, with_channels, with_sequences
from monai_diffae.errors import CohortError, ConfigError, counted, quoted, shortened
from monai_diffae.policies import MISSING_WORDS, PathLike

logger = logging.getLogger(__name__)

COLUMN_ROLES = ("id", "patient", "split", "mask")
"""The standard column names besides the image keys."""

_ALIKE = 0.8  # names of columns, from 0 to 1

_SECTIONS = ("", "training", "train", "validation", "val", "test", "testing")
_THOUSANDS = re.compile(r"[1-9]\d{0,2},\d{3}")
_DECIMAL_COMMA = re.compile(r"^([+-]?\d+),(\d+)$")
_WHOLE = re.compile(r"\d+\.0+")
_MOST_SHARED = 10_000  # different texts of a table that are kept to find equal ones
_INSIGNIFICANT = re.compile(r"\s+|(?<!\d)[-_]+|[-_]+(?!\d)|(?<!\d)0+(?=\d)")  # spaces, hyphens and leading zeros


def check_cohort_exists(path: PathLike) -> None:
    """Check that there is a cohort at a path, before long work that needs it; ``???`` stands for one to be given."""
    if str(path) == "???":
        raise ConfigError("dataset_dir: is required; give it a value")
    folder, _ = dicom.split_series(path)
    if not os.path.exists(folder):  # noqa: PTH110 - Path.exists raises if a parent folder is forbidden
        raise CohortError(f"{folder.name}: there is no such folder, table or scan; check the path of the cohort").at(
            path
        )


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Do not look for reference cycles: cases have none, and each search would visit all of them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_without_garbage_collection()
def read_cohort(
    path: PathLike,
    *,
    columns: Mapping[str, str] | None = None,
    image_keys: Sequence[str] = ("image",),
    patient_pattern: str | None = None,
    refuse_leaks: bool = True,
) -> list[Case]:
    r"""Read the cases of a cohort without opening images (except DICOM headers, for series and patients).

    Args:
        path: a folder, which is searched with its subfolders; a scan file or series; a CSV or TSV with paths relative
            to the table and one label per other column; or a MONAI datalist JSON.
        columns: names that the table uses for ``image``, ``id``, ``patient``, ``split`` and further image keys.
        image_keys: the columns with images; ``"image"`` must be one of them.
        patient_pattern: a regular expression that is searched in the image's path within the cohort; its first group,
            or the whole match, is the patient.
        refuse_leaks: raise an error if a patient is in two splits, or if two cases have one file.

    Returns:
        The cases, in the order of the table or of their names. The patient comes from ``patient_pattern``, the
        table, ``sub-XX`` in the path (BIDS) or a hash of DICOM's PatientID, in this order; otherwise each case is a
        patient of its own.

    Raises:
        CohortError: there are no usable cases, or duplicates, or a patient is in two splits.
        ConfigError: ``patient_pattern`` is not a regular expression, or ``columns`` has an unknown key.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table = Path(folder) / "cohort.csv"
        ...     _ = (Path(folder) / "a.png").write_bytes(b"...")
        ...     _ = table.write_text("file,who,age\na.png,p1,41\n")
        ...     read_cohort(table, columns={"image": "file", "patient": "who"})[0].labels
        {'age': 41}
    """
    path = Path(path)
    names = (
        {role: role for role in COLUMN_ROLES} | {"mask": ""} | {key: key for key in image_keys} | dict(columns or {})
    )
    if unknown := sorted(set(names) - {*image_keys, *COLUMN_ROLES}):
        roles = ", ".join((*image_keys, *COLUMN_ROLES))
        raise ConfigError(f"columns: {quoted(unknown[0])} is unknown; use one of {roles}")
    pattern = compiled(patient_pattern)
    check_cohort_exists(path)
    folder, uid = dicom.split_series(path)
    suffix = path.suffix.lower()
    if path.name == "dataset.json" and not {*_SECTIONS}.intersection(_read_json(path)):  # of nnU-Net, without entries
        path = folder = path.parent
    if folder.is_dir() and uid is None:
        content = search_folder(path)
        for line in content.left_out():
            logger.warning("%s: %s", path.name, line)
        return cases_in_folder(path, content, pattern)
    if is_table := suffix in (".csv", ".tsv", ".json", *_EXCEL):
        read = _read_datalist if suffix == ".json" else _read_table
        rows = read(path, names, tuple(image_keys), set(columns or {}))
    else:
        rows = [Case("", {"image": os.fspath(path)}, "")]
    rows = with_channels(rows)
    root = _common_folder(path.parent, rows) if is_table else folder.parent
    cases = _to_cases(path.name, rows, root, pattern, refuse_leaks=refuse_leaks)
    if refuse_leaks:
        check_splits(cases, path.name)
    _check_existence(path, rows)
    return cases


# -- tables and datalists ----------------------------------------------------------------------------------------------

_EXCEL = (".xlsx", ".xls", ".xlsm", ".ods")


ID_COLUMNS = (
    "file",
    "filename",
    "file_name",
    "image",
    "path",
    "scan_id",
    "image_id",
    "case_id",
    "case",
    "id",
    "participant_id",
    "subject",
    "subject_id",
    "subjectid",
    "mrid",
    "mri_id",
    "ixi_id",
    "patient_id",
    "patientid",
    "patient",
)
"""Usual names of the column with the ids; capitals do not matter. The one that fits most scans is used."""

MASK_COLUMNS = ("mask", "label", "seg", "segmentation", "mask_file", "mask_path", "annotation")
"""Usual names of a column with masks; capitals do not matter. A column ``label`` is one if its cells are files."""

PATIENTS = (
    "patient",
    "patient_id",
    "patientid",
    "patient_key",
    "participant_id",
    "participant",
    "subject_id",
    "subject",
)
"""Usual names of the column with the patients."""


def column_names(path: Path) -> list[str]:
    """The column names of a CSV or TSV, or the keys of a datalist's entries."""
    if path.suffix.lower() != ".json":
        return list(read_columns(path, may_be_empty=True))
    entries = [entry for _, _, entry in _read_entries(path) if isinstance(entry, dict)]
    return list(dict.fromkeys(key for entry in entries for key in entry))


def read_columns(path: Path, names: Collection[str] = (), *, may_be_empty: bool = False) -> dict[str, list[str]]:
    """The cells of a CSV (comma or semicolon) or TSV, as text without surrounding spaces, by column.

    In a table with semicolons, ``1,5`` becomes ``1.5`` unless its column is among ``names`` or has a usual name of one.
    """
    if path.suffix.lower() in _EXCEL and path.is_file():
        raise CohortError(f"{path.name}: Excel files are not read; save it as CSV, and give that file")
    if not path.is_file() or path.suffix.lower() not in (".csv", ".tsv", ".txt"):
        raise CohortError(f"{path.name}: there is no such CSV or TSV; check the path of the table")
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            first_line = stream.readline()
            stream.seek(0)
            delimiter = _delimiter(path, first_line)
            reader = csv.reader(stream, delimiter=delimiter)
            lines = ((reader.line_num, line) for line in reader if any(line))
            _, header = next(lines, (0, []))
            columns = _columns(path, [*map(str.strip, header)], lines)
    except (UnicodeDecodeError, csv.Error) as error:
        raise CohortError(f"{path.name}: this is not a table in UTF-8 ({error}); save it as CSV again") from error
    except OSError as error:
        raise CohortError(f"{path.name}: cannot be read ({error.strerror}); check its permissions") from error
    if not header or not (may_be_empty or any(columns.values())):
        raise CohortError(f"{path.name}: the table has no rows; it needs a header, and one row per scan or patient")
    if delimiter == ";":  # written by a program in whose language 1,5 is a number
        for name in columns.keys() - {*names}:
            if name.lower().replace(" ", "_") not in (*ID_COLUMNS, *PATIENTS):
                if columns[name] and all(map(_THOUSANDS.fullmatch, columns[name])):
                    logger.warning(
                        "%s: numbers in '%s' such as %s have a decimal comma; if it separates thousands, omit it",
                        path.name,
                        name,
                        columns[name][0],
                    )
                columns[name] = [_DECIMAL_COMMA.sub(r"\1.\2", cell) for cell in columns[name]]
    return columns


def _columns(path: Path, header: list[str], lines: Iterable[tuple[int, list[str]]]) -> dict[str, list[str]]:
    """The cells of numbered lines by column; equal cells are one text, so that large tables fit into memory."""
    double = next((name for name, count in Counter(header).items() if name and count > 1), None)
    if double is not None:
        raise CohortError(f"{path.name}: two columns are called '{shortened(double, 100)}'; rename one")
    # The first column may have no name: pandas writes the numbers of the rows so.
    unnamed = [i for i, name in enumerate(header) if i and not name]
    width = max((i + 1 for i, name in enumerate(header) if name), default=0)
    columns: list[list[str]] = [[] for _ in header]
    short, texts = [], dict[str, str]()
    for number, line in lines:
        line = [*map(str.strip, line)]
        if len(line) != len(header) or unnamed:
            if any(line[len(header) :]) or any(line[i] for i in unnamed if i < len(line)):
                wrong = f"line {number} ({len(line)} cells) has a value in a column without a name"
                advice = "name the column, or put text that contains the separator in quotes"
                raise CohortError(f"{path.name}: {wrong}; {advice}")
            if len(line) < width:
                short.append(f"line {number} has {len(line)} cells")
            line += [""] * (len(header) - len(line))
        for column, cell in zip(columns, map(texts.setdefault, line, line), strict=False):
            column.append(cell)
        if len(texts) > _MOST_SHARED:
            texts.clear()
    if short:
        others = f" (and {len(short) - 1} more lines are short)" if len(short) > 1 else ""
        advice = "the missing cells count as empty, so check that the table is complete"
        warn_once(path, f"{short[0]}, but the table has {counted(width, 'column')}{others}; {advice}")
    return {name: column for name, column in zip(header, columns, strict=True) if name}


def _delimiter(path: Path, first_line: str) -> str:
    if path.suffix.lower() == ".tsv" or ("\t" in first_line and "," not in first_line):
        return "\t"
    return ";" if ";" in first_line and "," not in first_line else ","


def _read_table(path: Path, names: Mapping[str, str], image_keys: tuple[str, ...], explicit: set[str]) -> list[Case]:
    """The rows of a CSV or TSV; ``explicit`` are the roles whose columns must exist, besides the images."""
    cells = read_columns(path, names.values())
    columns = _path_columns(cells, names)
    masks = _mask_columns(columns, names)
    if masks and not names["mask"]:
        names = {**names, "mask": masks[0]}
    sequences = {name: name for name in columns if name not in {*names.values(), *masks}}
    if names["image"] in cells and sequences:
        sequences = {"image": names["image"], **sequences}
    for role, name in names.items():
        is_needed = role in image_keys and not (role == "image" and sequences and role not in explicit)
        if name not in cells and (is_needed or role in explicit):
            raise _missing_column(path, role, name, cells, is_image=role in image_keys)
    free = {name.lower(): name for name in cells if name not in names.values()}
    for role in ("image", *COLUMN_ROLES):
        similar = difflib.get_close_matches(role, free, 1, _ALIKE) if names[role] not in cells else ()
        for name in map(free.__getitem__, similar):
            kind = "sequence" if name in sequences else "label"
            logger.warning("%s: the column %s is a %s; if not, set columns %s=%s", path.name, name, kind, role, name)
    no_labels = {*names.values(), *sequences.values(), *masks}
    labels = as_labels({name: column for name, column in cells.items() if name not in no_labels})
    keys = [key for key in image_keys if names[key] in cells]
    empty = [""] * len(next(iter(cells.values())))
    roles = [cells.get(names[role], empty) for role in COLUMN_ROLES]
    for column in {*(names[key] for key in keys), *sequences.values()}:
        cells[column] = _paths(path.parent, cells[column])
    by_sequence = [(name, cells[column]) for name, column in sequences.items()]
    by_key = [(key, cells[names[key]]) for key in keys]
    rows, files = [], dict[str, PathLike]()
    for i, (id, patient, split, mask) in enumerate(zip(*roles, strict=True)):
        if by_sequence:
            files = {name: column[i] for name, column in by_sequence if column[i]}
        images: dict[str, Images] = {key: column[i] for key, column in by_key if column[i]}
        if len(images) < max(len(keys), 1):
            missing = next(names[key] for key in keys or ["image"] if key not in images)
            if not (files and missing == names["image"]):
                wrong = f'row {i + 1} has no file in column "{missing}"'
                raise CohortError(f"{path.name}: {wrong}; fill it or remove the row")
        values = {name: column[i] for name, column in labels.items()}
        row = Case(id, images, patient, split, values, None, id, files, path.parent / mask if mask else None)
        rows.append(row if "image" in images else with_sequences(row, files))
    return rows


def _paths(folder: Path, cells: Sequence[str]) -> list[str]:
    """The paths in cells, from a folder; empty cells stay empty."""
    start = os.fspath(folder / "_")[:-1]
    return [
        (os.path.join(start, cell) if cell[0] == "/" else start + cell)  # noqa: PTH118 - join takes thrice as long
        if TIDY.fullmatch(cell)
        else cell and os.fspath(folder / cell)
        for cell in cells
    ]


def _mask_columns(columns: Collection[str], names: Mapping[str, str]) -> list[str]:
    """The columns with a usual name of masks among those with scans, the most usual first."""
    usual = [name for each in MASK_COLUMNS for name in columns if name.lower() == each]
    return [name for name in usual if name not in names.values()]


def _is_scan(cell: str) -> bool:
    return bool(scan_suffix(cell)) or dicom.SERIES in cell


def _path_columns(cells: Mapping[str, list[str]], names: Mapping[str, str]) -> list[str]:
    """The columns whose cells are scans, by their suffixes; empty cells are allowed."""
    roles = {names[role] for role in ("id", "patient", "split")}
    columns = [
        name
        for name, column in cells.items()
        if name not in roles and any(column) and all(not c or _is_scan(c) for c in column)
    ]
    is_unclear = names["image"] not in cells and any(name.lower() in ID_COLUMNS for name in columns)
    return [] if is_unclear else columns


def _missing_column(path: Path, role: str, name: str, cells: Mapping[str, list[str]], *, is_image: bool) -> CohortError:
    """The error that a column is missing, with a guess at its name."""
    guess: str | None = next(iter(difflib.get_close_matches(name, cells, n=1, cutoff=0.0)), "file")
    if is_image:
        firsts = {column: path.parent / values[0] for column, values in cells.items() if values[0]}
        # os.path, because a cell may hold a text that is too long for a name, at which pathlib raises
        others = [f for f in firsts.values() if os.path.exists(f) and f.suffix.lower() not in (".csv", ".tsv")]  # noqa: PTH110
        guess = next((column for column, file in firsts.items() if scan_suffix(file) or file in others), None)
    if guess is None:
        advice = f"join it to its scans: monai-diffae list-scans FOLDER scans.csv --table {path.name}"
    else:
        guess = shortened(guess, 60)
        advice = f"set columns, e.g. {role}={guess} (in a bundle run --columns#{role} {guess})"
    start = f'{path.name}: no column "{name}" (has '
    return CohortError(f"{start}{shortened(', '.join(cells), 197 - len(start) - len(advice))}); {advice}")


def _read_datalist(path: Path, names: Mapping[str, str], image_keys: tuple[str, ...], _: set[str]) -> list[Case]:
    """The rows of a MONAI datalist; of an entry's other keys, numbers and text are labels."""
    entries, channels = _read_entries(path), channel_names(_read_json(path))
    rows = [_entry(path, section, n, entry, names, image_keys) for section, n, entry in entries]
    rows = [_with_names(row, channels) for row in with_channels(rows, channels)]
    mappings = [entry for *_, entry in entries if isinstance(entry, dict)]
    nested = {key for entry in mappings for key, value in entry.items() if isinstance(value, (list, dict))}
    if nested := nested.difference(names.values()):
        logger.warning(
            "%s: lists and mappings cannot be labels, so these are ignored: %s; give each value a key of its own",
            path.name,
            ", ".join(sorted(nested)),
        )
    return rows


def _read_entries(path: Path) -> list[tuple[str, int, Any]]:
    """Section, number and content of each entry of a datalist."""
    sections = _read_json(path)
    lists = [(section, sections.get(section)) for section in _SECTIONS]
    entries = [(section, n, entry) for section, each in lists if isinstance(each, list) for n, entry in enumerate(each)]
    if not entries:
        keys = shortened(", ".join(map(str, sections)) or "nothing", 80)
        raise CohortError(f"{path.name}: no list of entries under training, validation or test (has {keys}); add it")
    return entries


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CohortError(f"{path.name}: this is not JSON ({error}); repair the file") from error
    return content if isinstance(content, dict) else {"": content}


def _with_names(row: Case, channels: Sequence[str]) -> Case:
    """A case with a file per channel, with names for its sequences: these, if they are as many."""
    files = row.images["image"]
    if not isinstance(files, tuple) or row.sequences:
        return row
    names = channels if len(files) == len(channels) else [f"channel{k}" for k in range(len(files))]
    return with_sequences(row, dict(zip(names, files, strict=True)))


def _entry(path: Path, section: str, n: int, entry: Any, names: Mapping[str, str], image_keys: tuple[str, ...]) -> Case:
    values = {names["image"]: entry} if isinstance(entry, str) else entry if isinstance(entry, dict) else {}
    images: dict[str, Images] = {}
    for key in image_keys:
        value = values.get(names[key])
        files: list[Any] = value if isinstance(value, list) else [value]
        if not files or not all(isinstance(f, str) and f for f in files):
            place = f"{section or 'entry'} {n + 1}"
            raise CohortError(f'{path.name}: {place} has no "{names[key]}" path; add it, or set columns')
        paths = _paths(path.parent, files)
        images[key] = tuple(paths) if isinstance(value, list) else paths[0]
    standard = {role: values.get(names[role]) for role in COLUMN_ROLES}
    # pandas writes NaN for missing values
    texts = {role: str(value) for role, value in standard.items() if value is not None and value == value}
    files_of = {key: value for key, value in values.items() if isinstance(value, str) and _is_scan(value)}
    mask = texts.get("mask") or next((files_of[key] for key in _mask_columns(files_of, names)), None)
    labels = {
        key: None if str(value).strip() in MISSING_WORDS else value
        for key, value in values.items()
        if key not in {*names.values(), *files_of} and (value is None or isinstance(value, (str, int, float)))
    }
    case = Case(texts.get("id", ""), images, texts.get("patient", ""), texts.get("split", section), labels)
    return replace(case, mask=path.parent / mask if mask else None)


def _common_folder(folder: Path, rows: Sequence[Case]) -> Path:
    """The table's folder if all images are in it, else the closest folder that holds all images."""
    parents = {*map(os.path.normpath, {os.path.dirname(row.path) for row in rows})}  # noqa: PTH120 - as scan_suffix
    table_folder = os.path.normpath(folder)
    if all(Path(p).is_relative_to(table_folder) for p in parents):
        return Path(table_folder)
    with suppress(ValueError):  # several drives, or both relative and absolute paths
        return Path(os.path.commonpath(parents))
    return Path(table_folder)


def _check_existence(path: Path, rows: Sequence[Case]) -> None:
    """Raise an error if all files are missing; a single missing file is a failure of its case."""
    files = (dicom.split_text(row.path)[0] for row in rows)
    if not any(os.path.exists(file) for file in files):  # noqa: PTH110 - as above
        first = rows[0].first_file
        name = first.relative_to(path.parent).as_posix() if first.is_relative_to(path.parent) else first.name
        short_name = name if len(name) <= 100 else f"...{name[-97:]}"
        raise CohortError(
            f"{path.name}: none of its {len(rows)} files exists (first: {short_name}); "
            "check the paths, which are relative to the table's folder, or use list-scans"
        )


# -- from rows to cases ------------------------------------------------------------------------------------------------


def cases_in_folder(folder: Path, content: FolderContent, pattern: re.Pattern[str] | None = None) -> list[Case]:
    """The scans found in a folder, as cases; ``pattern`` finds the patient in the image's path within the folder."""
    if not content.scans:
        searched = f"it was searched for {' '.join(SUFFIXES)} or DICOM without suffix"
        reason = next(content.left_out(), searched)
        raise CohortError(f"{folder.name}: there are no scans in this folder; {reason}")
    plain = names_within((case.path for case in content.scans), folder)
    names = short_names([case.id or name for case, name in zip(content.scans, plain, strict=True)])
    named = [replace(case, id=case.id and name) for case, name in zip(content.scans, names, strict=True)]
    return _to_cases(folder.name, named, folder, pattern)


def compiled(pattern: str | None) -> re.Pattern[str] | None:
    """Compile ``patient_pattern``."""
    try:
        return re.compile(pattern) if pattern else None
    except re.error as error:
        raise ConfigError(f"patient_pattern: '{pattern}' is not a regular expression ({error})") from error


def _to_cases(
    source: str, rows: list[Case], root: Path, pattern: re.Pattern[str] | None, *, refuse_leaks: bool = True
) -> list[Case]:
    """The rows, which become cases themselves, as a second object for each would take time."""
    names, relative = short_names(_names(rows, root)), relative_to(root)
    patients = unified_patients([_patient(row, relative, pattern) for row in rows])
    if pattern is not None and not any(pattern.search(relative(row.path)) for row in rows):
        logger.warning("%s: patient_pattern matches the path of no scan, so it names no patient; correct it", source)
    if len({*names}) < len(names):  # a.png and a.nii.gz have the same name, and keep their suffixes
        counts = Counter(names)
        names = [name if counts[name] == 1 else relative(row.path) for row, name in zip(rows, names, strict=True)]
    texts = [row.id or name for row, name in zip(rows, names, strict=True)]
    _check_rows(source, rows, texts, refuse_leaks=refuse_leaks)
    given, scans_of = [row.patient for row in rows], Counter(patients)
    for row, safe, file_name, patient in zip(rows, *safe_names(texts), patients, strict=True):
        row.id = row.id or safe
        row.split = standard_split(source, row.id, row.split)
        row.file_name = file_name
        row.patient = patient or file_name
        row.patient_is_given = bool(patient) and scans_of[patient] == 1  # twins share one that a scan is named after
    _warn_of_patients(source, given, rows)
    masks = Counter(os.path.normpath(case.mask) for case in rows if case.mask)
    for case in rows:
        if case.mask and masks[os.path.normpath(case.mask)] > 1:
            logger.warning("%s: %s has the same mask as another case; check the column mask", source, case.id)
            break
    return rows


def _names(rows: Sequence[Case], root: Path) -> list[str]:
    """The names of the rows' scans, or what those of their sequences begin with: ``p1`` for ``p1_T1, p1_FLAIR``."""
    names = iter(names_within((file for row in rows for file in (row.path, *row.sequences.values())), root))
    return [
        _common_name([next(names), *islice(names, len(row.sequences))]) if row.sequences else next(names)
        for row in rows
    ]


def _common_name(names: Sequence[str]) -> str:
    if len(set(names)) == 1:
        return names[0]
    common = os.path.commonprefix([re.split("[-_. /]", name) for name in names])  # noqa: RUF071 - of lists
    return names[0][: len("/".join(common))] if any(common) else names[0]


def _patient(row: Case, relative: Callable[[str], str], pattern: re.Pattern[str] | None) -> str | None:
    if pattern is not None and (match := pattern.search(relative(row.path))):
        return next((g for g in match.groups() if g), match[0])
    if row.patient:
        return row.patient
    if match := BIDS_SUBJECT.search(relative(row.path)):
        return match[1]
    return dicom.read_patient(row.first_file) if may_be_dicom(row.path) else None


def unified_patients(patients: Sequence[str | None]) -> list[str | None]:
    """Patients without spaces around them, one for all spellings of Unicode; ``1.0`` is ``1`` if there is one."""
    names = [None if patient is None else unicodedata.normalize("NFKC", patient).strip() for patient in patients]
    known = {name for name in names if name is not None}
    decimals = {name for name in known if "." in name}
    if not all(map(_WHOLE.fullmatch, decimals)):  # 1.0 beside 1.2 is a name
        return names
    whole: dict[str | None, str] = {name: name.partition(".")[0] for name in decimals}
    return [whole[name] if whole.get(name) in known else name for name in names]


def standard_split(source: str, id: str, split: str | None) -> str | None:
    """The standard name of the split of a case of the table or folder ``source``."""
    if split and split.lower() not in SPLITS:
        raise CohortError(f"{source}: case {quoted(id)} has the unknown split {quoted(split)}; use train, val or test")
    return SPLITS[split.lower()] if split else None


def _check_rows(source: str, rows: Sequence[Case], ids: Sequence[str], *, refuse_leaks: bool) -> None:
    """Raise an error if an id or, with ``refuse_leaks``, a file occurs twice."""
    for first, second, *_ in cases_of_one_file(rows) if refuse_leaks else ():
        names = [next(id for row, id in zip(rows, ids, strict=True) if row is each)[:60] for each in (first, second)]
        raise CohortError(f"{source}: the cases '{names[0]}' and '{names[1]}' have the same file; keep one")
    unprintable = next((row.id for row in rows if not row.id.isprintable()), None)
    if unprintable is not None:
        raise CohortError(f"{source}: the id {quoted(unprintable)} has a line break or control character; remove it")
    if len({*ids}) < len(ids):
        double = next(id for id, count in Counter(ids).items() if count > 1)
        raise CohortError(f"{source}: the id '{double[:60]}' occurs twice; give every case an id of its own")


def _warn_of_patients(source: str, given: Sequence[str], cases: Sequence[Case]) -> None:
    """Warn of patients called NA, as R writes missing values, and of those that may be one person in two splits."""
    counts = Counter(patient for patient in given if patient and patient in MISSING_WORDS)
    for word in MISSING_WORDS:
        if counts[word] > 1:
            logger.warning(
                "%s: %d cases have the patient '%s', and count as one patient; leave the cell empty if their patients "
                "are unknown",
                source,
                counts[word],
                word,
            )
    patients = {case.patient: case.split for case in cases if not case.has_own_patient}
    splits: dict[str, dict[str, str | None]] = {}
    plain = {patient: _INSIGNIFICANT.sub("", patient.replace("_", "-")).casefold() for patient in patients}
    if len({*plain.values()}) < len(plain):
        for patient, split in patients.items():
            splits.setdefault(plain[patient], {})[patient] = split
    similar = [by_name for by_name in splits.values() if len(by_name) > 1]
    divided = [by_name for by_name in similar if len(set(by_name.values())) > 1 or None in by_name.values()]
    if divided:
        logger.warning(
            "%s: %d patients have names that differ from another's in capitals, spaces, hyphens or leading zeros only, "
            "and may be in different splits; if they are the same person, write the name in one way",
            source,
            sum(map(len, divided)),
        )
