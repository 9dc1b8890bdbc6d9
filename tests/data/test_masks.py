"""The mask of a case on its own grid."""

from dataclasses import replace

import numpy as np
import pytest

from monai_diffae.data.cases import Case
from monai_diffae.data.formats.axes import slice_volume
from monai_diffae.data.masks import case_mask, read_mask
from monai_diffae.data.scans import read_scan, write_scan
from monai_diffae.transforms import ReadScand

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


def test_a_mask_that_covers_part_of_the_scan_is_empty_outside_and_complete_at_its_border(tmp_path):
    write_scan(tmp_path / "scan.nii.gz", np.arange(1000.0).reshape(1, 10, 10, 10), np.eye(4))
    shifted = np.eye(4)
    shifted[:3, 3] = [2.3, 0, 0]  # less than half a voxel beyond voxel 2
    write_scan(tmp_path / "mask.nii.gz", np.ones((1, 4, 10, 10)), shifted, dtype=np.uint8)
    mask = read_mask(tmp_path / "mask.nii.gz", tmp_path / "scan.nii.gz").array[0]
    np.testing.assert_array_equal(np.flatnonzero(mask[:, 0, 0]), [2, 3, 4, 5])


def test_sequences_whose_positions_are_rounded_are_not_resampled(tmp_path):
    first, second = (np.random.default_rng(seed).normal(size=(1, 6, 6, 6)) for seed in (0, 1))
    affine = np.diag([1.0, 1, 1, 1])
    for name, array, offset in (("a", first, 0), ("b", second, 0.02), ("c", second, 0.3)):
        affine[0, 3] = offset
        write_scan(tmp_path / f"{name}.nii.gz", array, affine)
    a, b, c = (str(tmp_path / f"{name}.nii.gz") for name in "abc")
    read = ReadScand("image", 3, channels=2)
    np.testing.assert_array_equal(read({"image": [a, b]})["image"][1], np.float32(second[0]))
    moved = read({"image": [a, c]})["image"][1]
    assert moved[0].std() > 0.3  # the border is not filled
