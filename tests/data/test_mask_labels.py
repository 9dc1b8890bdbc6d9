"""Masks become labels, on the grid of their scan."""

import csv
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scan_files import save_nifti, shared, values

from monai_diffae.data.cohort_split import ModelImages, expand_slices, split_cohort
from monai_diffae.data.cohorts import read_cohort
from monai_diffae.data.masks import read_mask, with_mask_labels
from monai_diffae.data.scans import read_scan
from monai_diffae.errors import ScanError


def lesion(*shape):
    return np.random.default_rng(0).integers(0, 3, shape).astype(np.uint8)


def labels_of(folder, *names):
    cases = with_mask_labels(read_cohort(folder))
    return {case.id: [case.labels[name] for name in names] for case in cases}


def test_volumes_of_hippocampi_are_those_of_the_table():
    folder = shared("hippocampus_msd")
    cases = with_mask_labels(read_cohort(folder)[:20])
    with open(folder / "cases.csv", newline="") as stream:
        rows = {row["file"].partition(".")[0]: row for row in csv.DictReader(stream)}
    for case in cases:
        voxels = [int(rows[case.id][name]) for name in ("vox_anterior", "vox_posterior")]
        sizes = [float(rows[case.id][name]) for name in ("sx", "sy", "sz")]
        expected = np.array([sum(voxels), *voxels]) * np.prod(sizes) / 1000
        names = ("mask_ml", "mask_1_ml", "mask_2_ml")
        assert [case.labels[name] for name in names] == pytest.approx(expected.tolist(), rel=1e-5)


def test_four_classes_of_a_tumour_are_four_labels():
    (case,) = with_mask_labels(read_cohort(shared("brats2013")))
    array = read_scan(case.mask).array
    for label in range(1, 5):
        assert case.labels[f"mask_{label}_ml"] == pytest.approx((array == label).sum() / 1000)  # voxels of 1 mm
        assert case.labels[f"mask_{label}_present"] == 1
    assert case.labels["mask_ml"] == pytest.approx((array > 0).sum() / 1000)


def test_areas_of_slices_are_those_of_numpy():
    cohort = split_cohort(shared("lgg_mri_128"), 2, images=ModelImages(["FLAIR"]))
    slices = [case for case in cohort.cases if case.patient.startswith("TCGA_CS_49")]
    cases = replace(cohort, cases=slices).with_mask_labels().cases
    for case in cases:
        plane = read_scan(case.mask).array[0, :, :, case.slice_index]
        assert case.labels == {"mask_present": int(plane.any()), "mask_cm2": pytest.approx(plane.sum() * 0.04)}
    assert {case.labels["mask_present"] for case in cases} == {0, 1}


def test_pictures_have_shares(tmp_path):
    Image.fromarray(values(8, 10).astype(np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.pad(np.full((2, 5), 255, np.uint8), ((6, 0), (5, 0)))).save(tmp_path / "a_mask.png")
    assert labels_of(tmp_path, "mask_present", "mask_share") == {"a": [1, 0.125]}


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
def test_slices_along_each_axis_add_up_to_the_volume(tmp_path, axis):
    affine = np.array([[0, 0, 3.0, 0], [-1.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 0, 1]])
    save_nifti(tmp_path / "a.nii", values(5, 6, 7), affine)
    save_nifti(tmp_path / "a_mask.nii", lesion(5, 6, 7), affine)
    cases = read_cohort(tmp_path)
    slices, _ = expand_slices(cases, axis=axis)
    thickness = {"axial": 2, "coronal": 1, "sagittal": 3}[axis]
    areas = [case.labels["mask_2_cm2"] for case in with_mask_labels(slices, axis)]
    (case,) = with_mask_labels(cases)
    assert sum(areas) * thickness / 10 == pytest.approx(case.labels["mask_2_ml"])
    assert case.labels["mask_2_ml"] == pytest.approx((lesion(5, 6, 7) == 2).sum() * 6 / 1000)


def test_a_mask_on_another_grid_is_resampled_as_simpleitk_does(tmp_path, caplog):
    sitk = pytest.importorskip("SimpleITK")
    image = save_nifti(tmp_path / "a.nii", values(11, 12, 13), np.diag([1.0, 1.5, 2.0, 1.0]))
    mask = save_nifti(tmp_path / "m.nii", lesion(9, 9, 9), np.diag([1.3, 2.1, 3.1, 1.0]) + np.eye(4, k=3) * 0.7)
    target, labels = (sitk.ReadImage(str(path)) for path in (image, mask))
    expected = sitk.Resample(labels, target, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    resampled = read_mask(mask, image).array[0]
    within = np.s_[1:-1, 1:-1, 1:-1]
    assert np.array_equal(resampled[within], sitk.GetArrayFromImage(expected).T[within])
    assert "m.nii: it is resampled from 9 x 9 x 9 to 11 x 12 x 13, the grid of the first image" in caplog.text


@pytest.mark.parametrize(
    ("mask", "shift", "wrong"),
    [
        (lesion(5, 6, 7) + np.float32(0.5), 0, "negative, large or fractional values, so it is no mask"),
        (lesion(5, 6, 7).astype(np.int16) - 1, 0, "negative, large or fractional values, so it is no mask"),
        (np.arange(343, dtype=np.int16).reshape(7, 7, 7), 0, "it has 343 different values, so it is no mask"),
        (lesion(5, 6, 7), 500, "it lies outside of the first image"),
    ],
)
def test_bad_masks_are_refused_and_give_missing_labels(tmp_path, caplog, mask, shift, wrong):
    save_nifti(tmp_path / "a.nii")
    save_nifti(tmp_path / "a_mask.nii", mask, np.eye(4) + np.eye(4, k=3) * shift)
    save_nifti(tmp_path / "b.nii")
    save_nifti(tmp_path / "b_mask.nii", lesion(5, 6, 7))
    with pytest.raises(ScanError, match=wrong):
        read_mask(tmp_path / "a_mask.nii", tmp_path / "a.nii")
    assert labels_of(tmp_path, "mask_present") == {"a": [None], "b": [1]}
    assert wrong in caplog.text
