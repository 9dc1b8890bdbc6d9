"""Real scans, read by us and by others. They are not part of the repository: without them, these tests are skipped."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from scan_files import shared

from monai_diffae.data.scan_writing import write_series
from monai_diffae.data.scans import read_scan


def as_itk(series):
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(series)))
    return reader.Execute()


def test_nifti_as_nibabel_reads_it():
    files = [shared("studyforrest_t1") / "studyforrest_sub02_T1w_2mm.nii.gz"]
    files += sorted((shared("hippocampus_msd") / "images").glob("*.nii.gz"))[::40]
    for file in files:
        scan, image = read_scan(file), nib.load(file)
        np.testing.assert_array_equal(scan.array[0], np.asarray(image.dataobj, np.float32))
        np.testing.assert_array_equal(scan.affine, image.affine)


def test_pictures_as_pillow_reads_them():
    for file in sorted(shared("cxr_pneumonia_224").glob("train/*/*.jpeg"))[::1000]:
        np.testing.assert_array_equal(read_scan(file).array[0], np.asarray(Image.open(file).convert("L")))


@pytest.mark.parametrize(
    "name", ["hippocampus_hcrop_dicom/Study2_14_HCropVolume", "dicom_mr_brain_pgbm003/11-T1post-18670"]
)
def test_a_dicom_series_as_itk_reads_it_and_there_and_back(name, tmp_path):
    source = shared(name)
    scan, image = read_scan(source), as_itk(source)
    np.testing.assert_array_equal(scan.array[0].transpose(2, 1, 0), sitk.GetArrayFromImage(image))
    to_ras = np.diag([-1, -1, 1])
    np.testing.assert_allclose(scan.affine[:3, 3], to_ras @ image.GetOrigin(), atol=1e-3)
    directions = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    np.testing.assert_allclose(scan.affine[:3, :3], to_ras @ directions, atol=1e-3)
    written = write_series(tmp_path / "new", scan.array, source)
    np.testing.assert_array_equal(read_scan(written).array, scan.array)
    np.testing.assert_allclose(as_itk(written).GetOrigin(), image.GetOrigin(), atol=1e-6)
