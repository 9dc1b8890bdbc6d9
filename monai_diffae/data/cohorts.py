"""Read a cohort: a folder, a single scan, a table or a MONAI datalist becomes a list of cases."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from monai_diffae.data.cases import MISSING_WORDS, Case, Images, safe_file_names, safe_ids
from monai_diffae.data.failures import Failure, write_failures
from monai_diffae.data.folders import FolderContent, name_within, search_folder, searched_formats, short_names
from monai_diffae.data.formats import dicom, nifti
from monai_diffae.data.scans import may_be_dicom
from monai_diffae.data.slice_cases import expand_slices
from monai_diffae.data.splits import SPLITS, assign_splits, check_splits
from monai_diffae.data.tables import COLUMN_ROLES, Row, check_is_text, read_datalist, read_table
from monai_diffae.errors import CohortError, ConfigError, quoted

__all__ = ["Case", "Failure", "assign_splits", "expand_slices", "fingerprint", "read_cohort", "write_failures"]

logger = logging.getLogger(__name__)

_WHOLE = re.compile(r"\d+\.0+")
_INSIGNIFICANT = re.compile(r"\s+|(?<!\d)0+(?=\d)")  # spaces and leading zeros
_BIDS = re.compile(r"(?:^|[/_])(sub-[A-Za-z0-9]+)")


def check_cohort_exists(path: str | os.PathLike[str]) -> None:
    """Check that there is a cohort at a path, before long work that needs it.

    Example:
        >>> check_cohort_exists("no_such_folder")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.CohortError: no_such_folder: there is no such folder, table or scan; check the path ...
    """
    folder, _ = dicom.split_series(Path(path))
    if not os.path.exists(folder):  # noqa: PTH110 - Path.exists raises if a parent folder is forbidden
        raise CohortError(f"{folder.name}: there is no such folder, table or scan; check the path of the cohort")


def read_cohort(
    path: str | os.PathLike[str],
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
        CohortError: there are no usable cases: no scans, no image column, duplicates, a patient in two splits, or
            none of the files exists.
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
    unknown = sorted(set(columns or {}) - {*image_keys, *COLUMN_ROLES})
    if unknown:
        roles = ", ".join((*image_keys, *COLUMN_ROLES))
        raise ConfigError(f"columns: {quoted(unknown[0])} is unknown; use one of {roles}")
    pattern = compiled(patient_pattern)
    check_cohort_exists(path)
    folder, uid = dicom.split_series(path)
    check_is_text(path)
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv", ".json"):
        reader = read_datalist if suffix == ".json" else read_table
        rows = reader(path, dict(columns or {}), tuple(image_keys))
        root = _common_folder(path.parent, rows)
    else:
        if folder.is_dir() and uid is None:
            content = search_folder(path)
            for line in content.left_out():
                logger.warning("%s: %s", path.name, line)
            return cases_in_folder(path, content, pattern)
        rows, root = [Row({"image": path})], folder.parent
    cases = _to_cases(path.name, rows, root, pattern, refuse_leaks=refuse_leaks)
    if refuse_leaks:
        check_splits(cases, path.name)
    _check_existence(path, rows)
    return cases


def cases_in_folder(folder: Path, content: FolderContent, pattern: re.Pattern[str] | None = None) -> list[Case]:
    """The scans found in a folder, as cases; ``pattern`` finds the patient in the image's path within the folder."""
    if not content.scans:
        reason = next(content.left_out(), f"it was searched for {searched_formats()}")
        raise CohortError(f"{folder.name}: there are no scans in this folder; {reason}")
    rows = [Row({"image": scan.path}, patient=scan.patient) for scan in content.scans]
    return _to_cases(folder.name, rows, folder, pattern)


def fingerprint(cases: Sequence[Case]) -> str:
    """SHA-256 of a cohort's ids, slices, splits and file sizes, in any order; no name can be read from it."""
    sizes: dict[Path, int] = {}
    lines = []
    for case in cases:
        files = [(key, file) for key in sorted(case.images) for file in _files(case.images[key])]
        for _, file in files:
            if file not in sizes:
                sizes[file] = _size(file)
        file_sizes = [f"{key}={sizes[file]}" for key, file in files]
        id_hash = hashlib.sha256(case.file_name.encode()).hexdigest()
        lines.append(" ".join([id_hash, str(case.slice_index), str(case.split), *file_sizes]))
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _size(path: Path) -> int:
    """Bytes of a file, of both files of a NIfTI pair, or of all files in a series' folder; -1 if one is missing."""
    folder, _ = dicom.split_series(path)
    try:
        if folder.is_dir():
            return sum(entry.stat().st_size for entry in os.scandir(folder) if entry.is_file())
        return sum(file.stat().st_size for file in {folder, nifti.voxel_file(folder)})
    except OSError:
        return -1


def compiled(pattern: str | None) -> re.Pattern[str] | None:
    """Compile ``patient_pattern``."""
    try:
        return re.compile(pattern) if pattern else None
    except re.error as error:
        raise ConfigError(f"patient_pattern: '{pattern}' is not a regular expression ({error})") from error


def _common_folder(folder: Path, rows: Sequence[Row]) -> Path:
    """The table's folder if all images are in it, else the closest folder that holds all images."""
    parents = [os.path.normpath(row.first.parent) for row in rows]
    table_folder = os.path.normpath(folder)
    if all(Path(p).is_relative_to(table_folder) for p in set(parents)):
        return Path(table_folder)
    try:
        return Path(os.path.commonpath(parents))
    except ValueError:  # several drives, or both relative and absolute paths
        return Path(table_folder)


def _to_cases(
    source: str, rows: Sequence[Row], root: Path, pattern: re.Pattern[str] | None, *, refuse_leaks: bool = True
) -> list[Case]:
    names = short_names([name_within(row.first, root) for row in rows])
    counts = Counter(names)
    files = [Path(os.path.relpath(row.first, root)).as_posix() for row in rows]
    patients = unified_patients([_patient(row, file, pattern) for row, file in zip(rows, files, strict=True)])
    # a.png and a.nii.gz have the same name, and keep their suffixes
    unique_names = [name if counts[name] == 1 else file for name, file in zip(names, files, strict=True)]
    texts = [row.id or name for row, name in zip(rows, unique_names, strict=True)]
    if refuse_leaks:
        _check_files(source, rows, texts)
    _check_ids(source, rows, texts)
    _warn_of_missing_patients(source, rows)
    file_names = safe_file_names(texts)
    cases = [
        Case(
            row.id or id, row.images, patient or name, _split(source, row.id or id, row.split), row.labels,
            file_name=name,
        )
        for id, name, row, patient in zip(safe_ids(texts), file_names, rows, patients, strict=True)
    ]  # fmt: skip
    _warn_of_similar_patients(source, cases)
    return cases


def unified_patients(patients: Sequence[str | None]) -> list[str | None]:
    """Patients without spaces around them; a number that was read as a decimal is that number, if it occurs, too.

    Example:
        >>> unified_patients(["1", "1.0", " p ", "2.0", None])
        ['1', '1', 'p', '2.0', None]
    """
    names = [None if patient is None else patient.strip() for patient in patients]
    known = {name for name in names if name is not None}
    decimals = {name for name in known if "." in name}
    if not all(map(_WHOLE.fullmatch, decimals)):  # 1.0 beside 1.2 is a name
        return names
    whole: dict[str | None, str] = {name: name.partition(".")[0] for name in decimals}
    return [whole[name] if whole.get(name) in known else name for name in names]


def _warn_of_similar_patients(source: str, cases: Sequence[Case]) -> None:
    """Warn of patients whose names differ in capitals, spaces or leading zeros only, and may be in different splits."""
    splits: dict[str, dict[str, str | None]] = {}
    for case in cases:
        if not case.has_own_patient:
            splits.setdefault(_INSIGNIFICANT.sub("", case.patient).casefold(), {})[case.patient] = case.split
    similar = [by_name for by_name in splits.values() if len(by_name) > 1]
    divided = [by_name for by_name in similar if len(set(by_name.values())) > 1 or None in by_name.values()]
    if divided:
        logger.warning(
            "%s: %d patients have names that differ from another's in capitals, spaces or leading zeros only, and may "
            "be in different splits; if they are the same person, write the name in one way", source,
            sum(map(len, divided)),
        )  # fmt: skip


def _patient(row: Row, relative: str, pattern: re.Pattern[str] | None) -> str | None:
    if pattern is not None and (match := pattern.search(relative)):
        return next((g for g in match.groups() if g), match[0])
    if row.patient is not None:
        return row.patient
    if match := _BIDS.search(relative):
        return match[1]
    return dicom.read_patient(row.first) if may_be_dicom(row.first) else None


def _warn_of_missing_patients(source: str, rows: Sequence[Row]) -> None:
    """Warn if several patients are called NA or the like, as R writes missing values."""
    counts = Counter(row.patient for row in rows)
    for word in MISSING_WORDS:
        if counts[word] > 1:
            logger.warning(
                "%s: %d cases have the patient '%s', and count as one patient; leave the cell empty if their patients "
                "are unknown", source, counts[word], word,
            )  # fmt: skip


def _split(source: str, id: str, split: str | None) -> str | None:
    if split is None:
        return None
    if split.lower() not in SPLITS:
        raise CohortError(f"{source}: case '{id}' has the unknown split '{split[:40]}'; use train, val or test")
    return SPLITS[split.lower()]


def _check_ids(source: str, rows: Sequence[Row], ids: Sequence[str]) -> None:
    earlier_ids: set[str] = set()
    for row, id in zip(rows, ids, strict=True):
        if row.id is not None and not row.id.isprintable():
            raise CohortError(
                f"{source}: the id {quoted(row.id)} has a line break or another control character; remove it"
            )
        if id in earlier_ids:
            raise CohortError(f"{source}: the id '{id[:60]}' occurs twice; give every case an id of its own")
        earlier_ids.add(id)


def _check_files(source: str, rows: Sequence[Row], ids: Sequence[str]) -> None:
    by_file: dict[tuple[str, ...], str] = {}
    for row, id in zip(rows, ids, strict=True):
        files = tuple(os.path.normpath(p) for p in _files(row.images["image"]))
        if files in by_file:
            raise CohortError(
                f"{source}: the cases '{by_file[files][:60]}' and '{id[:60]}' have the same file; keep one"
            )
        by_file[files] = id


def _check_existence(path: Path, rows: Sequence[Row]) -> None:
    """Raise an error if all files are missing; a single missing file is a failure of its case."""
    files = (dicom.split_series(file)[0] for row in rows for file in _files(row.images["image"]))
    if not any(os.path.exists(file) for file in files):  # noqa: PTH110 - as above
        first = rows[0].first
        name = first.relative_to(path.parent).as_posix() if first.is_relative_to(path.parent) else first.name
        short_name = name if len(name) <= 100 else f"...{name[-97:]}"
        raise CohortError(
            f"{path.name}: none of its {len(rows)} files exists (first: {short_name}); "
            "check the paths, which are relative to the table's folder, or use list-scans"
        )


def _files(images: Images) -> tuple[Path, ...]:
    return images if isinstance(images, tuple) else (images,)
