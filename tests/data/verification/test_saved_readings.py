from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from scan_files import save_nifti, values

from monai_diffae.data.cases import Case
from monai_diffae.data.verification import SavedReadings, read_case


def test_readings_come_back_until_the_file_changes(tmp_path: Path) -> None:
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
