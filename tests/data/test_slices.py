from __future__ import annotations

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scan_files import values

from monai_diffae.data.scans import Scan, read_scan, read_shape, slice_volume
from monai_diffae.errors import ConfigError, ScanError

ORIENTATIONS = ["".join(o) for p in itertools.permutations(["LR", "PA", "IS"]) for o in itertools.product(*p)]


@pytest.mark.parametrize("code", ORIENTATIONS)
def test_all_48_orientations_give_the_same_slices(code: str, tmp_path: Path) -> None:
    truth = nib.Nifti1Image(values(4, 5, 6), np.diag([1.0, 2, 3, 1]))
    turn = nib.orientations.ornt_transform(nib.io_orientation(truth.affine), nib.orientations.axcodes2ornt(code))
    nib.save(truth.as_reoriented(turn), tmp_path / "a.nii")
    scan, array = read_scan(tmp_path / "a.nii"), truth.get_fdata()
    assert read_shape(tmp_path / "a.nii") == (4, 5, 6)
    wanted = {
        "axial": (2, array[::-1, ::-1, 2].T),
        "coronal": (3, array[::-1, 3, ::-1].T),
        "sagittal": (1, array[1, ::-1, ::-1].T),
    }
    for axis, (index, plane) in wanted.items():
        got = slice_volume(scan, axis, index)  # type: ignore[arg-type]
        np.testing.assert_array_equal(got.array[0], plane)
        # row 1, column 2 of the slice lies where its voxel lies in the volume
        place = np.argwhere(array == plane[1, 2])[0]
        np.testing.assert_allclose(got.affine @ [1, 2, 0, 1], truth.affine @ [*place, 1], atol=1e-5)


def test_axial_slice_shows_the_patients_right_on_the_left() -> None:
    array = np.zeros((1, 10, 10, 10), np.float32)
    array[0, 8, 9, 5] = 1  # right (R+), anterior (A+)
    plane = slice_volume(Scan(array, np.eye(4)), "axial", 5).array[0]
    assert tuple(np.argwhere(plane == 1)[0]) == (0, 1)


def test_slices_that_do_not_exist() -> None:
    volume = Scan(values(1, 3, 3, 3), np.eye(4))
    for index in (-1, 3):
        with pytest.raises(ScanError, match="does not exist"):
            slice_volume(volume, "axial", index)
    with pytest.raises(ConfigError, match="axis"):
        slice_volume(volume, "oblique", 0)  # type: ignore[arg-type]
    with pytest.raises(ScanError, match="no slices"):
        slice_volume(Scan(values(1, 3, 3), np.eye(4)), "axial", 0)
