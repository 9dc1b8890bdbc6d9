"""Give scans the labels, splits, patients and ids of the rows that they were joined to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from monai_diffae.data.cases import MISSING_WORDS, Case, Label, as_labels
from monai_diffae.data.formats.dicom import hash_patient
from monai_diffae.data.listing.joins import Join
from monai_diffae.data.splits import SPLITS
from monai_diffae.errors import CohortError, quoted

_PATIENTS = (
    "patient",
    "patient_id",
    "patientid",
    "patient_key",
    "participant_id",
    "participant",
    "subject_id",
    "subject",
)


def with_roles(join: Join, table: str, names: Mapping[str, str]) -> tuple[Join, list[str]]:
    """The join with the columns of patients and splits under their standard names, and a line if one was guessed.

    Args:
        join: the joined table.
        table: its name.
        names: the names that it uses for patient and split.

    Raises:
        CohortError: there is no such column.
    """
    lines = []
    for role, usual in (("patient", _PATIENTS), ("split", ("split",))):
        guess = next((name for name in join.columns if name.lower() in usual and name != join.id_column), None)
        is_fit = guess is not None and (role != "split" or _are_splits(join.columns[guess]))
        if guess is not None and is_fit and role not in {*names, *join.columns}:
            names = {**names, role: guess}
            lines.append(f"{role}{'s' if role == 'patient' else ''}: the column {guess} of {table}")
    for name in names.values():
        if name not in join.columns:
            raise CohortError(f"columns: {table} has no column {quoted(name)}; it has {', '.join(join.columns)[:120]}")
    roles = {name: role for role, name in names.items()}
    return replace(join, columns={roles.get(name, name): cells for name, cells in join.columns.items()}), lines


def _are_splits(cells: Sequence[str]) -> bool:
    return all(cell in MISSING_WORDS or cell.lower() in SPLITS for cell in cells)


def with_rows(cases: Sequence[Case], join: Join, table: str) -> list[Case]:
    """The cases with the cells of their rows: labels, and the split and patient if the table has them.

    Raises:
        CohortError: a label is in the folders, too, or a split is unknown.
    """
    columns = {name: cells for name, cells in join.columns.items() if name.lower() not in ("image", "id")}
    labels = as_labels({name: cells for name, cells in columns.items() if name not in ("patient", "split")})
    labels.pop(join.id_column, None)
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
    own: dict[str, Label] = {name: None if row is None else values[row] for name, values in labels.items()}
    case = replace(case, labels={**case.labels, **own})
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
