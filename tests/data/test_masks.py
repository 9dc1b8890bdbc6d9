"""The mask of a case on its own grid."""

from dataclasses import replace

import numpy as np
import pytest

from monai_diffae.data.cases import Case
from monai_diffae.data.masks import case_mask
from monai_diffae.data.scans import read_scan, slice_volume, write_scan

AFFINE = np.array([[0, 2.0, 0, 5], [-2, 0, 0, 7], [0, 0, 3, -9], [0, 0, 0, 1]])  # other axes than RAS


@pytest.fixture
def case(tmp_path):
    volume = np.random.default_rng(0).random((1, 12, 10, 8))
    labels = np.zeros_like(volume)
    labels[0, 3:6, 2:7, 4:6] = 2
    image = write_scan(tmp_path / "a.nii.gz", volume, AFFINE)
    return Case("a", {"image": image}, "p", mask=write_scan(tmp_path / "m.nii.gz", labels, AFFINE))


def test_a_mask_has_the_grid_of_the_scan_or_of_the_slice(case):
    mask, scan = case_mask(case), read_scan(case.mask)
    np.testing.assert_array_equal(mask, scan.array[0] > 0)
    one = case_mask(replace(case, slice_index=4), "coronal")
    np.testing.assert_array_equal(one, slice_volume(scan, "coronal", 4).array[0] > 0)


def test_a_mask_on_another_grid_is_brought_to_that_of_the_scan(case, tmp_path):
    cropped = AFFINE.copy()
    cropped[:3, 3] += 2 * AFFINE[:3, 0]
    mask = write_scan(tmp_path / "cropped.nii.gz", read_scan(case.mask).array[:, 2:], cropped)
    np.testing.assert_array_equal(case_mask(replace(case, mask=mask)), case_mask(case))
