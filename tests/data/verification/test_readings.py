import numpy as np
from scan_files import save_nifti, values

from monai_diffae.data.cases import Case
from monai_diffae.data.verification import read_case


def test_a_volume_is_described_as_it_is_displayed(tmp_path):
    affine = np.diag([1.0, 2, 3, 1])[:, [2, 0, 1, 3]]  # stored with S first
    path = save_nifti(tmp_path / "a.nii", values(4, 5, 6), affine)
    for headers in (False, True):
        reading = read_case(Case("a", {"image": path}, "a"), headers)
        assert (reading.size, reading.spacing_mm, reading.error) == ((5, 6, 4), (1, 2, 3), "")
    assert read_case(Case("a", {"image": path}, "a")).intensities[2] == np.median(values(4, 5, 6))


def test_all_files_of_a_case_are_read(tmp_path):
    good, bad = save_nifti(tmp_path / "a.nii"), tmp_path / "b.nii"
    bad.write_bytes(b"junk")
    assert read_case(Case("a", {"image": (good, bad)}, "a")).error.startswith("b.nii: ")
    assert read_case(Case("a", {"t1": bad, "image": good}, "a"), headers=True).error.startswith("b.nii: ")
