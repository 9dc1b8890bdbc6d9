"""Keyed hashes in listed scans: always for DICOM's PatientIDs, and for all ids and patients if the user asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from monai_diffae.data.cases import Case
from monai_diffae.data.formats import dicom
from monai_diffae.data.patient_keys import folder_key
from monai_diffae.data.scans import may_be_dicom
from monai_diffae.policies import Ids


def with_hashes(cases: Sequence[Case], folder: Path, ids: Ids = "names") -> list[Case]:
    """The cases without names that their table should not have.

    Args:
        cases: the listed scans.
        folder: the folder of the table, in which the key of the hashes lies; a key is made only if it is needed.
        ids: ``"names"`` hashes only patients that are known by DICOM's PatientID; ``"hashed"`` replaces all ids by
            ``case-`` and a hash, and all patients by hashes.

    Raises:
        ConfigError: the file with the key is damaged.
        MachineError: it cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [case] = with_hashes([Case("Jane Doe", {"image": Path("t1.nii")}, "Jane Doe")], Path(folder), "hashed")
        >>> case.id[:5], len(case.id), case.patient == case.id
        ('case-', 21, True)
    """
    if ids == "hashed":
        key = folder_key(folder)
        hashes = [f"case-{key.hash(case.id)}" for case in cases]
        return [
            replace(case, id=id, file_name="", patient=id if case.has_own_patient else key.hash(case.patient))
            for case, id in zip(cases, hashes, strict=True)
        ]
    has_patient_id = [_is_known_by_patient_id(case) for case in cases]
    if not any(has_patient_id):
        return list(cases)
    key = folder_key(folder)
    return [
        replace(case, patient=key.hash(case.patient)) if is_patient_id else case
        for case, is_patient_id in zip(cases, has_patient_id, strict=True)
    ]


def _is_known_by_patient_id(case: Case) -> bool:
    return may_be_dicom(case.first_file) and case.patient == dicom.read_patient(case.first_file)
