import os

import nibabel as nib
import numpy as np
import pytest
from scan_files import save_nifti, values

from monai_diffae.data.cases import Case
from monai_diffae.data.verification import SavedReadings, read_case


def test_readings_come_back_until_the_file_changes(tmp_path):
    image = nib.Nifti1Image(values(5, 6, 7), None)  # without orientation, which is a doubt
    nib.save(image, tmp_path / "a.nii")
    (tmp_path / "b.nii").write_bytes(b"junk")
    cases = [Case(name, {"image": tmp_path / f"{name}.nii"}, name) for name in "ab"]
    readings = [read_case(case) for case in cases]
    saved = SavedReadings(tmp_path / "readings.jsonl")
    for case, reading in zip(cases, readings, strict=True):
        saved.add(case, reading)
    for case, reading in zip(cases, readings, strict=True):
        again = SavedReadings(tmp_path / "readings.jsonl").get(case)
        assert again is not None
        plain, expected = ({**vars(each), "fingerprint": None} for each in (again, reading))
        assert plain == expected
        if reading.fingerprint is not None:
            assert again.fingerprint is not None
            assert again.fingerprint.digest == reading.fingerprint.digest
            np.testing.assert_array_equal(again.fingerprint.thumbnail, reading.fingerprint.thumbnail)
    assert SavedReadings(tmp_path / "readings.jsonl", headers=True).get(cases[0]) is None
    save_nifti(tmp_path / "a.nii", values(5, 6, 8))
    assert SavedReadings(tmp_path / "readings.jsonl").get(cases[0]) is None
    (tmp_path / "readings.jsonl").write_bytes(b"\xff\n x {}\n")
    assert SavedReadings(tmp_path / "readings.jsonl").get(cases[1]) is None


@pytest.mark.goal(id="R12")
def test_files_of_one_name_size_and_time_are_not_confused(tmp_path):
    """The reading of one patient's scan came back for that of another, from which no defect was then reported."""
    cases = []
    for patient, array in {"p1": np.full((5, 6, 7), np.nan, np.float32), "p2": values(5, 6, 7)}.items():
        (tmp_path / patient).mkdir()
        path = save_nifti(tmp_path / patient / "t1.nii", array.astype(np.float32))
        os.utime(path, ns=(0, 10**18))  # as in an archive
        cases.append(Case(f"{patient}/t1", {"image": path}, patient))
    saved = SavedReadings(tmp_path / "readings.jsonl")
    for case in cases:
        saved.add(case, read_case(case))
    first, second = (SavedReadings(tmp_path / "readings.jsonl").get(case) for case in cases)
    assert first is not None
    assert second is not None
    assert (first.fingerprint, second.fingerprint is None) == (None, False)
    for case in cases:
        case.first_file.rename(case.first_file.with_suffix(".old"))
    (tmp_path / "p1" / "t1.old").rename(cases[1].first_file)
    (tmp_path / "p2" / "t1.old").rename(cases[0].first_file)
    assert [SavedReadings(tmp_path / "readings.jsonl").get(case) for case in cases] == [None, None]
