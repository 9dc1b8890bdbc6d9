"""Keyed hashes of patients: without the key, nobody can try out a list of names or numbers."""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import mkstemp

from monai_diffae.data.cases import Case
from monai_diffae.data.fingerprints import digest
from monai_diffae.data.formats.dicom import read_patient
from monai_diffae.data.scans import may_be_dicom
from monai_diffae.errors import ConfigError, MachineError
from monai_diffae.policies import Ids

KEY_FILE = ".patient_key"
"""The file with the key, in the folder of the tables that it was used for. It must not be published with them."""


@dataclass(frozen=True)
class PatientKey:
    """The key that turns patients into hashes: 32 random hexadecimal digits."""

    secret: str

    @property
    def name(self) -> str:
        """Eight digits that tell keys apart and do not reveal them; tables record them."""
        return digest(f"monai_diffae:key:{self.secret}")[:8]

    def hash(self, patient: str) -> str:
        """The first 16 hexadecimal digits of the HMAC-SHA-256 of a patient: the same for all cases of a patient."""
        message = patient.encode("utf-8", "surrogatepass")
        return hmac.new(self.secret.encode(), message, "sha256").hexdigest()[:16]


def folder_key(folder: Path) -> PatientKey:
    """The key of a folder; it is made if there is none. Only the user can read it."""
    file = folder / KEY_FILE
    if file.is_file():
        return _read(file)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = mkstemp(dir=folder, prefix=".tmp-")  # only the user can read it
        with os.fdopen(descriptor, "w") as stream:
            stream.write(_new_secret())
        _publish(Path(name), file)
    except OSError as error:
        raise MachineError(f"{KEY_FILE}: cannot be written ({error.strerror}); choose another folder") from error
    return _read(file)


def key_beside(table: Path, name: str | None) -> PatientKey:
    """The key with which the patients of a table were hashed; ``name`` is what the table records of it."""
    if name is None:
        raise ConfigError(f"{table.name}: an earlier version hashed its patients in another way; embed again")
    file = table.parent / KEY_FILE
    key = _read(file) if file.is_file() else None
    if key is None or key.name != name:
        raise ConfigError(
            f"{table.name}: the key of its patients is not beside it; copy {KEY_FILE} from the folder in which embed "
            "wrote the table, or embed again"
        )
    return key


def _publish(temporary: Path, file: Path) -> None:
    """Give a file its name, unless another process of the same run was first."""
    try:
        os.link(temporary, file)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def _read(file: Path) -> PatientKey:
    try:
        secret = file.read_text().strip()
    except (OSError, ValueError):
        secret = ""
    if len(secret) != 32 or not set(secret) <= set("0123456789abcdef"):
        raise ConfigError(f"{KEY_FILE}: is damaged; remove it, and embed again with overwrite")
    return PatientKey(secret)


def _new_secret() -> str:
    return secrets.token_hex(16)


def with_hashes(cases: Sequence[Case], folder: Path, ids: Ids = "names") -> list[Case]:
    """The cases with hashes for DICOM's PatientIDs or, if ``ids`` is ``"hashed"``, for all ids and patients."""
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
    return may_be_dicom(case.first_file) and case.patient == read_patient(case.first_file)
