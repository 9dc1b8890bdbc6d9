from __future__ import annotations

import numpy as np
import pytest

from monai_diffae.data.scan_checks import scan_of_array
from monai_diffae.data.scans import read_scan, write_scan
from monai_diffae.errors import ScanError

VOLUME = np.arange(60.0).reshape(1, 3, 4, 5)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.int64, np.float16, np.float64])
def test_an_array_is_the_scan_that_its_file_is(tmp_path, dtype):
    array = (VOLUME % 2 if dtype is bool else VOLUME).astype(dtype)
    affine = np.array([[0, -1.5, 0, 3], [2.0, 0, 0, -7], [0, 0, 4, 1], [0, 0, 0, 1]])
    scan = scan_of_array(array, affine, spatial_dims=3, channels=1)
    expected = read_scan(write_scan(tmp_path / "a.nii", array, affine))
    np.testing.assert_array_equal(scan.array, expected.array)
    np.testing.assert_array_equal(scan.affine, expected.affine)
    assert scan.array.dtype == np.float32
    assert not np.shares_memory(scan.array, array)


@pytest.mark.goal(id="R8")
def test_nan_can_be_filled_and_grey_colours_are_one_channel():
    array = VOLUME.copy()
    array[0, 0, 0, 0] = np.nan
    assert scan_of_array(array, nonfinite=-1.0).array.min() == -1
    assert scan_of_array(np.stack([VOLUME[0, 0]] * 3), channels=1).array.shape == (1, 4, 5)


@pytest.mark.parametrize(
    ("array", "affine", "message"),
    [
        (VOLUME[0, 0], None, "image: it has 2 axes, expected .*; add or remove axes"),
        (VOLUME[None], None, "image: it has 5 axes, expected"),
        (VOLUME[:, :0], None, "image: its size is 1 x 0 x 4 x 5, 0.0 GiB"),
        (VOLUME[:0], None, "image: its size is 0 x 3 x 4 x 5"),
        (np.broadcast_to(np.float32(1), (1, 1024, 1024, 513)), None, "image: its size is .*, 2.0 GiB"),
        (VOLUME + 1j, None, "image: its values are complex128, not plain numbers"),
        (VOLUME.astype(str), None, "image: its values are <U"),
        (VOLUME * np.inf, None, "image: 60 of its voxels are NaN or infinite"),
        (VOLUME * 0, None, "image: every voxel has the same value"),
        (1e12 + VOLUME, None, "image: its values, about 1e.12, are too close together for float32"),
        (VOLUME, np.eye(3), "image: its affine is 3 x 3, expected 4 x 4"),
        (VOLUME, np.full((4, 4), np.nan), "image: its affine or spacing is not finite"),
        (VOLUME, np.diag([1.0, 0, 1, 1]), "image: its voxel spacing is 1 x 0 x 1 mm"),
        (VOLUME, np.eye(4)[[0, 0, 2, 3]], "image: its voxel spacing is|image: its affine is singular"),
        (VOLUME[0], None, "image: it has 3 channels.*, expected 1"),
    ],
)
def test_refusals(array, affine, message):
    with pytest.raises(ScanError, match=f"^{message}") as caught:
        scan_of_array(array, affine, spatial_dims=None if array.ndim != 3 else 2, channels=1)
    assert "\n" not in str(caught.value)
    assert "header" not in str(caught.value)
