"""A folder, a file, a table or a MONAI datalist to a list of cases."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from monai_diffae.data.cases import Case, Images, safe_ids
from monai_diffae.data.failures import Failure, write_failures
from monai_diffae.data.folders import name_within, search_folder, searched_for
from monai_diffae.data.formats import dicom, nifti
from monai_diffae.data.scans import scan_suffix
from monai_diffae.data.slice_cases import expand_slices
from monai_diffae.data.splits import SPLITS, assign_splits, check_splits
from monai_diffae.data.tables import WORDS, Row, read_datalist, read_table
from monai_diffae.errors import CohortError, ConfigError

__all__ = ["Case", "Failure", "assign_splits", "expand_slices", "fingerprint", "read_cohort", "write_failures"]

_BIDS = re.compile(r"(?:^|[/_])(sub-[A-Za-z0-9]+)")


def read_cohort(
    path: str | os.PathLike[str],
    *,
    columns: Mapping[str, str] | None = None,
    image_keys: Sequence[str] = ("image",),
    patient_pattern: str | None = None,
) -> list[Case]:
    r"""Read a cohort's cases, without opening their images (except DICOM headers, for series and patients).

    Args:
        path: a folder, searched through; one scan file or series; a CSV or TSV, where paths are relative to the
            table and all other columns are labels; or a MONAI datalist JSON.
        columns: what the table calls our words ``image``, ``id``, ``patient``, ``split`` and further image keys.
        image_keys: the columns that hold images; ``"image"`` must be there.
        patient_pattern: a regular expression searched in the image's path within the cohort; its first group, or
            the whole match, is the patient.

    Returns:
        The cases, in the table's order or in that of their names. The patient is the table's, that of the pattern,
        ``sub-XX`` in the path (BIDS), a hash of DICOM's PatientID, or else the case alone.

    Raises:
        CohortError: there is no usable set of cases: nothing found, no image column, duplicates, a patient in two
            splits, or none of the files exists.
        ConfigError: ``patient_pattern`` is no regular expression.

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
    unknown = sorted(set(columns or {}) - {*image_keys, *WORDS})
    if unknown:
        words = ", ".join((*image_keys, *WORDS))
        raise ConfigError(f"columns: {unknown[0]!r} is none of our words, which are: {words}")
    pattern = _compiled(patient_pattern)
    folder, uid = dicom.split_series(path)
    if not os.path.exists(folder):  # noqa: PTH110 - Path.exists raises where a folder above is closed
        raise CohortError(f"{folder.name}: there is no such folder, table or scan; check the path of the cohort")
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv", ".json"):
        reader = read_datalist if suffix == ".json" else read_table
        rows = reader(path, dict(columns or {}), tuple(image_keys))
        root = _common_folder(path.parent, rows)
    else:
        rows = _rows_of_files(path, is_folder=folder.is_dir() and uid is None)
        root = path if folder.is_dir() and uid is None else folder.parent
    cases = _to_cases(path.name, rows, root, pattern)
    check_splits(cases, path.name)
    _check_existence(path, rows)
    return cases


def fingerprint(cases: Sequence[Case]) -> str:
    """A SHA-256 of the cohort: hashes of ids, slices, splits and file sizes, in any order; it tells no name."""
    sizes: dict[Path, int] = {}
    lines = []
    for case in cases:
        files = [(key, file) for key in sorted(case.images) for file in _files(case.images[key])]
        for _, file in files:
            if file not in sizes:
                sizes[file] = _size(file)
        parts = [f"{key}={sizes[file]}" for key, file in files]
        lines.append(
            " ".join([hashlib.sha256(case.id.encode()).hexdigest(), str(case.slice_index), str(case.split), *parts])
        )
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _size(path: Path) -> int:
    """Bytes of a file, of both files of a NIfTI pair, or of all files of a series' folder; -1 where one is missing."""
    folder, _ = dicom.split_series(path)
    try:
        if folder.is_dir():
            return sum(entry.stat().st_size for entry in os.scandir(folder) if entry.is_file())
        return sum(file.stat().st_size for file in {folder, nifti.voxel_file(folder)})
    except OSError:
        return -1


def _compiled(pattern: str | None) -> re.Pattern[str] | None:
    try:
        return re.compile(pattern) if pattern else None
    except re.error as error:
        raise ConfigError(f"patient_pattern: '{pattern}' is no regular expression ({error})") from error


def _rows_of_files(path: Path, *, is_folder: bool) -> list[Row]:
    if not is_folder:
        return [Row({"image": path})]
    found = search_folder(path)
    if not found:
        raise CohortError(f"{path.name}: no scans in this folder; searched it through for {searched_for()}")
    return [Row({"image": f.path}, patient=f.patient) for f in found]


def _common_folder(folder: Path, rows: Sequence[Row]) -> Path:
    """The table's folder where all images lie in it, else the one that they have in common."""
    parents = [os.path.normpath(row.first.parent) for row in rows]
    home = os.path.normpath(folder)
    if all(Path(p).is_relative_to(home) for p in set(parents)):
        return Path(home)
    try:
        return Path(os.path.commonpath(parents))
    except ValueError:  # other drives, or relative beside absolute paths
        return Path(home)


def _to_cases(source: str, rows: Sequence[Row], root: Path, pattern: re.Pattern[str] | None) -> list[Case]:
    names = [name_within(row.first, root) for row in rows]
    count = Counter(names)
    relative = [Path(os.path.relpath(row.first, root)).as_posix() for row in rows]
    # a.png beside a.nii.gz: there the suffix tells them apart
    own = [name if count[name] == 1 else file for name, file in zip(names, relative, strict=True)]
    texts = [row.id or name for row, name in zip(rows, own, strict=True)]
    _check_duplicates(source, rows, texts)
    ids = safe_ids(texts)
    return [
        Case(id, row.images, _patient(row, file, pattern) or id, _split(source, id, row.split), row.labels)
        for id, row, file in zip(ids, rows, relative, strict=True)
    ]


def _patient(row: Row, relative: str, pattern: re.Pattern[str] | None) -> str | None:
    if pattern is not None and (match := pattern.search(relative)):
        return next((g for g in match.groups() if g), match[0])
    if row.patient is not None:
        return row.patient
    if match := _BIDS.search(relative):
        return match[1]
    first = row.first
    if scan_suffix(first) in ("", *dicom.SUFFIXES):
        return dicom.read_patient(first)
    return None


def _split(source: str, id: str, split: str | None) -> str | None:
    if split is None:
        return None
    if split.lower() not in SPLITS:
        raise CohortError(f"{source}: case '{id}' has the unknown split '{split[:40]}'; use train, val or test")
    return SPLITS[split.lower()]


def _check_duplicates(source: str, rows: Sequence[Row], ids: Sequence[str]) -> None:
    seen: set[str] = set()
    by_file: dict[tuple[str, ...], str] = {}
    for row, id in zip(rows, ids, strict=True):
        if row.id is not None and id in seen:
            raise CohortError(f"{source}: the id '{id[:60]}' is there twice; give every case an id of its own")
        seen.add(id)
        files = tuple(os.path.normpath(p) for p in _files(row.images["image"]))
        if files in by_file:
            raise CohortError(
                f"{source}: the cases '{by_file[files][:60]}' and '{id[:60]}' are the same file; keep one"
            )
        by_file[files] = id


def _check_existence(path: Path, rows: Sequence[Row]) -> None:
    """A file that is missing is its case's problem; if all are, the table's."""
    files = (dicom.split_series(file)[0] for row in rows for file in _files(row.images["image"]))
    if not any(os.path.exists(file) for file in files):  # noqa: PTH110 - as above
        first = rows[0].first
        name = first.relative_to(path.parent).as_posix() if first.is_relative_to(path.parent) else first.name
        shown = name if len(name) <= 100 else f"...{name[-97:]}"
        raise CohortError(
            f"{path.name}: none of its {len(rows)} files exists (first: {shown}); "
            "paths are relative to the table's folder: check them"
        )


def _files(images: Images) -> tuple[Path, ...]:
    return images if isinstance(images, tuple) else (images,)
