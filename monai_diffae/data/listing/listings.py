"""List the scans of a folder or table with the labels that can be found for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from monai_diffae.data.cases import Case, Label
from monai_diffae.data.cohorts import cases_in_folder, compiled, read_cohort
from monai_diffae.data.folders import name_within, search_folder, short_names
from monai_diffae.data.listing import bids
from monai_diffae.data.listing.class_folders import find_class_folders
from monai_diffae.data.listing.joined_labels import with_roles, with_rows
from monai_diffae.data.listing.joins import join_table
from monai_diffae.data.scans import may_be_dicom, scan_suffix
from monai_diffae.data.splits import SPLITS, check_splits
from monai_diffae.errors import CohortError, ConfigError, counted

_BIDS_TABLE = "participants.tsv"
_MAX_CLASSES = 12  # most values of a label that are listed


@dataclass(frozen=True)
class Sources:
    """Where labels come from.

    Attributes:
        from_folders: take the names of folders as labels; None: if they look like classes.
        label: the name of the label column for the folders.
        table: a table with labels, which is joined to the scans; None: ``participants.tsv`` in the folder, if it is
            there.
        id_column: the column of the table that names scans or patients; None: found by its name.
        patient_pattern: a regular expression that finds the patient in the image's path.
    """

    from_folders: bool | None = None
    label: str = "label"
    table: Path | None = None
    id_column: str | None = None
    patient_pattern: str | None = None


@dataclass(frozen=True)
class Listing:
    """The scans of a folder or table, with their labels.

    Attributes:
        name: the folder or table.
        cases: the scans.
        notes: one line for each thing that was found, decided or left out.
    """

    name: str
    cases: list[Case]
    notes: list[str] = field(default_factory=list)

    @property
    def formats(self) -> Counter[str]:
        """The number of scans of each format: a suffix, or ``DICOM``."""
        return Counter(_format(case) for case in self.cases)

    @property
    def labels(self) -> dict[str, Counter[Label]]:
        """For each label the number of scans with each value; None: missing."""
        names = dict.fromkeys(name for case in self.cases for name in case.labels)
        return {name: Counter(case.labels.get(name) for case in self.cases) for name in names}

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
        return {
            "num_scans": len(self.cases),
            "num_patients": self.num_patients,
            "formats": dict(self.formats),
            "splits": {str(name): count for name, count in self.splits.items()},
            "labels": labels,
            "notes": self.notes,
        }

    def lines(self) -> Iterator[str]:
        """What was found, line by line."""
        formats = ", ".join(f"{count} {name}" for name, count in self.formats.most_common())
        yield f"{self.name}: {counted(len(self.cases), 'scan')} ({formats})"
        if all(case.has_own_patient for case in self.cases):
            yield "patients: not known, so each scan counts as a patient (--patient-pattern finds them in the paths)"
        else:
            yield f"patients: {self.num_patients}"
        yield from self.notes
        if set(self.splits) != {None}:
            yield f"column split: {_counts({name or 'none': count for name, count in self.splits.items()})}"
        for name, values in self.labels.items():
            yield f"column {name}: {_described(values)}"


def list_cases(cohort: Path, sources: Sources = Sources(), columns: Mapping[str, str] | None = None) -> Listing:
    """List the scans of a cohort, with labels from its folders, from a table and from the names of BIDS.

    Args:
        cohort: a folder, which is searched with its subfolders, or a table, datalist or scan.
        sources: where labels come from.
        columns: names that the cohort's table uses for image, id, patient or split; for a folder, those of the table
            that is joined.

    Raises:
        CohortError: no scans, the table of labels cannot be joined to them, or a patient is in two splits.
        ConfigError: ``patient_pattern`` is not a regular expression, ``columns`` has an unknown key, or ``id_column``
            or ``columns`` is given and there is no table.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("benign/a", "benign/b", "malignant/c", "malignant/c_mask", "malignant/d"):
        ...         (Path(folder) / name).parent.mkdir(exist_ok=True)
        ...         _ = (Path(folder) / f"{name}.png").write_bytes(b"...")
        ...     listing = list_cases(Path(folder))
        >>> [(case.id, case.labels["label"]) for case in listing.cases]
        [('a', 'benign'), ('b', 'benign'), ('c', 'malignant'), ('d', 'malignant')]
        >>> listing.notes[0]
        'label maps beside the scans are left out: 1, e.g. malignant/c_mask.png'
    """
    notes: list[str] = []
    if cohort.is_dir():
        content = search_folder(cohort)
        notes += content.left_out()
        cases, root = cases_in_folder(cohort, content, compiled(sources.patient_pattern)), cohort
        cases = _with_plain_ids(cases, root)
    else:
        cases = read_cohort(cohort, columns=columns, patient_pattern=sources.patient_pattern)
        root = cohort.parent
    if sources.from_folders or (sources.from_folders is None and cohort.is_dir()):
        cases, lines = _with_classes(cases, root, sources)
        notes += lines
    table = sources.table or _bids_table(cohort)
    if table is None:
        _refuse_without_table(cohort, sources, columns)
    else:
        cases, lines = _with_table(cases, root, table, sources, columns if columns and cohort.is_dir() else {})
        notes += lines
    name = cohort.name or cohort.resolve().name
    check_splits(cases, name)
    return Listing(name, _with_bids_details(cases, root), notes)


def _with_plain_ids(cases: list[Case], root: Path) -> list[Case]:
    """The cases with the names of their scans as ids, as they are: not made safe as file names."""
    ids = short_names([name_within(case.first_file, root) for case in cases])
    if len(set(ids)) < len(ids):
        return cases
    return [
        replace(case, id=id, patient=id if case.has_own_patient else case.patient)
        for case, id in zip(cases, ids, strict=True)
    ]


def _with_classes(cases: Sequence[Case], root: Path, sources: Sources) -> tuple[list[Case], list[str]]:
    """The cases with the labels and splits of their folders, and lines that say what was found."""
    folders = [Path(name_within(case.first_file, root)).parts[:-1] for case in cases]
    folder_names = find_class_folders(folders, strict=sources.from_folders is None)
    if sources.from_folders and not folder_names.classes:
        raise CohortError(
            "labels_from_folders: the scans are not in two folders of one level; omit labels_from_folders, or set table"
        )
    notes = []
    if folder_names.classes:
        names = ", ".join(map(str, sorted({name for name in folder_names.classes if name is not None})[:_MAX_CLASSES]))
        notes.append(f"the folders {names} are classes: column {sources.label} (--no-labels-from-folders omits it)")
        cases = [
            replace(case, labels={**case.labels, sources.label: name})
            for case, name in zip(cases, folder_names.classes, strict=True)
        ]
    outside = _outside_splits(folders)
    if not folder_names.splits and outside is not None:
        notes.append(
            f"the folders train, val or test are no column split, because {cases[outside].id[:60]} is in none of them; "
            "move or remove such scans, or add a column split"
        )
    if folder_names.splits:
        notes.append("the folders train, val or test are the column split")
        cases = [
            replace(case, split=case.split or split) for case, split in zip(cases, folder_names.splits, strict=True)
        ]
    return list(cases), notes


def _outside_splits(folders: Sequence[Sequence[str]]) -> int | None:
    """The first scan outside of folders named as splits, if there are several such folders; None: there is none."""
    splits = [next((SPLITS[folder.lower()] for folder in each if folder.lower() in SPLITS), None) for each in folders]
    return splits.index(None) if None in splits and len(set(splits)) > 2 else None


def _with_table(
    cases: list[Case], root: Path, table: Path, sources: Sources, columns: Mapping[str, str]
) -> tuple[list[Case], list[str]]:
    """The cases with the cells of a table, and lines that say how they were joined."""
    names = dict(columns)
    join = join_table(cases, root, table, sources.id_column or names.pop("id", None))
    notes = list(join.notes(table.name, cases))
    join, lines = with_roles(join, table.name, names)
    is_double = sources.label in join.columns and any(sources.label in case.labels for case in cases)
    if is_double and sources.from_folders is None:
        lines.append(f"{table.name} has a column {sources.label}, so the folders are not used as labels")
        cases = [replace(case, labels={k: v for k, v in case.labels.items() if k != sources.label}) for case in cases]
    return with_rows(cases, join, table.name), notes + lines


def _with_bids_details(cases: Sequence[Case], root: Path) -> list[Case]:
    """The cases with the session and suffix in their BIDS names as labels, if these differ and no table has them."""
    details = [bids.details(name_within(case.first_file, root)) for case in cases]
    for word in ("session", "suffix"):
        values = [each.get(word) for each in details]
        if len(set(values)) > 1 and not any(word in case.labels for case in cases):
            cases = [
                replace(case, labels={**case.labels, word: value}) for case, value in zip(cases, values, strict=True)
            ]
    return list(cases)


def _refuse_without_table(cohort: Path, sources: Sources, columns: Mapping[str, str] | None) -> None:
    for name, is_given in (("id_column", sources.id_column), ("columns", columns and cohort.is_dir())):
        if is_given:
            raise ConfigError(f"{name}: there is no table whose columns it could name; omit {name}, or set table")


def _bids_table(cohort: Path) -> Path | None:
    table = cohort / _BIDS_TABLE
    return table if table.is_file() else None


def _format(case: Case) -> str:
    return "DICOM" if may_be_dicom(case.first_file) else scan_suffix(case.first_file)


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
