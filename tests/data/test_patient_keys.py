"""Goal R21: hashes of patients cannot be tried out without the key, which stays in the output folder."""

import hashlib
import stat
from dataclasses import replace

import pytest
from dicom_files import save_series

from monai_diffae.data.cases import KEY_FILE, PatientKey, folder_key, key_beside, share_known, with_hashes
from monai_diffae.data.cohorts import read_cohort
from monai_diffae.data.formats.dicom import hash_patient
from monai_diffae.data.inspection.listing import list_cases, write_listing
from monai_diffae.errors import ConfigError, MachineError

pytestmark = pytest.mark.goal(id="R21")


def test_a_folder_keeps_its_key_another_has_another_and_only_the_user_can_read_it(tmp_path, random_keys):
    key = folder_key(tmp_path / "a")
    assert folder_key(tmp_path / "a") == key
    assert stat.S_IMODE((tmp_path / "a" / KEY_FILE).stat().st_mode) == 0o600
    other = folder_key(tmp_path / "b")
    assert other != key
    assert other.hash("1234567") != key.hash("1234567")
    assert other.name != key.name


def test_neither_hash_nor_name_of_a_key_is_a_plain_hash_of_what_can_be_guessed(tmp_path, random_keys):
    key = folder_key(tmp_path)
    plain = {hashlib.new(name, b"1234567").hexdigest()[:16] for name in ("sha256", "sha1", "md5")}
    assert key.hash("1234567") not in plain
    assert key.secret not in key.hash("1234567") + key.name


def test_a_table_needs_its_own_key(tmp_path):
    key = folder_key(tmp_path)
    assert key_beside(tmp_path / "t.parquet", key.name) == key
    for table, name in ((tmp_path / "else" / "t.parquet", key.name), (tmp_path / "t.parquet", PatientKey("ab").name)):
        with pytest.raises(ConfigError, match=r"^t\.parquet: the key of its patients is not beside it"):
            key_beside(table, name)


@pytest.mark.parametrize("content", ["", "short", "\x00" * 32])
def test_a_damaged_key_is_not_used(tmp_path, content):
    (tmp_path / KEY_FILE).write_text(content)
    with pytest.raises(ConfigError, match="is damaged"):
        folder_key(tmp_path)
    with pytest.raises((MachineError, ConfigError)):
        folder_key(tmp_path / KEY_FILE)  # no folder


def test_patient_ids_are_hashed_with_the_key_of_the_folder(tmp_path):
    for number in (1, 2, 3):
        save_series(tmp_path / "scans" / f"ct{number}", uid=f"1.2.{number}", patient=f"MRN-{number // 2}")
    cases = list_cases(tmp_path / "scans").cases
    hashed = with_hashes(cases, tmp_path)
    key = folder_key(tmp_path)
    assert [case.patient for case in hashed] == [key.hash(hash_patient(f"MRN-{n // 2}")) for n in (1, 2, 3)]
    assert [case.id for case in hashed] == ["ct1", "ct2", "ct3"]


def test_names_that_files_give_stay_and_need_no_key(tmp_path, scans):
    cases = list_cases(scans("sub-01_T1w.nii.gz")).cases
    assert with_hashes(cases, tmp_path) == cases
    assert not (tmp_path / KEY_FILE).exists()


def test_patients_that_a_table_gives_are_known_even_if_they_name_the_scans(tmp_path, scans):
    table = scans("a.nii", "b.nii").parent / "patients.csv"
    table.write_text("image,patient\nscans/a.nii,a\nscans/b.nii,b\n")
    copy = write_listing(list_cases(table), tmp_path / "copy.csv")
    assert [share_known(read_cohort(each)) for each in (table, copy, tmp_path / "scans")] == [1, 1, 0]


def test_hashed_ids_are_unique_and_stay_the_same(tmp_path, scans):
    cases = list_cases(scans("Doe.nii.gz", "sub-01/sub-01_run-1_T1w.nii.gz", "sub-01/sub-01_run-2_T1w.nii.gz")).cases
    hashed = with_hashes(cases, tmp_path, "hashed")
    assert hashed == with_hashes(cases, tmp_path, "hashed")
    assert len({case.id for case in hashed}) == 3
    assert all(case.id == case.file_name and case.id.startswith("case-") for case in hashed)
    assert [case.has_own_patient for case in hashed] == [True, False, False]
    assert hashed[1].patient == hashed[2].patient != "sub-01"
    shared = with_hashes([cases[0], replace(cases[1], patient=cases[0].patient)], tmp_path, "hashed")
    assert shared[0].patient == shared[1].patient == shared[0].id
