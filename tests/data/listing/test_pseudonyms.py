"""Keyed hashes of ids and patients in listed scans."""

import pytest
from scan_files import save_series

from monai_diffae.data.formats.dicom import hash_patient
from monai_diffae.data.listing import list_cases
from monai_diffae.data.listing.pseudonyms import with_hashes
from monai_diffae.data.patient_keys import KEY_FILE, folder_key

pytestmark = pytest.mark.goal(id="R21")


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


def test_hashed_ids_are_unique_and_stay_the_same(tmp_path, scans):
    cases = list_cases(scans("Doe.nii.gz", "sub-01/sub-01_T1w.nii.gz", "sub-01/sub-01_T2w.nii.gz")).cases
    hashed = with_hashes(cases, tmp_path, "hashed")
    assert hashed == with_hashes(cases, tmp_path, "hashed")
    assert len({case.id for case in hashed}) == 3
    assert all(case.id == case.file_name and case.id.startswith("case-") for case in hashed)
    assert [case.has_own_patient for case in hashed] == [True, False, False]
    assert hashed[1].patient == hashed[2].patient != "sub-01"
