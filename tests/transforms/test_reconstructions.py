import shutil

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from monai.transforms import Compose, NormalizeIntensityd
from pydicom.data import get_testdata_file

from monai_diffae.data.cases import Case
from monai_diffae.data.scans import read_scan, write_scan
from monai_diffae.errors import ConfigError
from monai_diffae.transforms import NativeSpace, ReadScand, ToModelRanged, WriteReconstructiond
from monai_diffae.transforms.case_images import read_image

PREPROCESSING = Compose([ReadScand("image", 2), ToModelRanged("image", method="minmax")])


@pytest.fixture
def case(tmp_path):
    file = write_scan(tmp_path / "scan.nii.gz", np.arange(20.0, 36.0).reshape(1, 4, 4), np.diag([2.0, 3, 1, 1]))
    return Case("a", {"image": file}, "a")


def test_in_the_scans_own_space_or_in_the_models_grid(case, tmp_path):
    native = NativeSpace(PREPROCESSING, case.item())
    item = {"pred": native.image, "id": "a"}
    assert WriteReconstructiond("pred", tmp_path / "native", [case], PREPROCESSING)(item) == item
    made, scan = read_scan(tmp_path / "native" / "pred" / "a.nii.gz"), read_scan(case.images["image"])
    np.testing.assert_allclose(made.array, scan.array, atol=1e-5)
    np.testing.assert_allclose(made.affine, scan.affine, atol=1e-5)
    grid = {"grid": "model", "affine": np.diag([5.0, 5, 5, 1])}
    WriteReconstructiond("pred", tmp_path / "model", [case], PREPROCESSING, folders="x_T", **grid)(item)
    file = tmp_path / "model" / "x_T" / "a.nii.gz"
    np.testing.assert_allclose(read_image(file, (-1, 1))[..., 0], native.image, atol=1e-6)
    np.testing.assert_array_equal(nib.load(file).affine, grid["affine"])


def test_each_key_has_a_folder(case, tmp_path):
    item = {"x_T": torch.zeros(1, 4, 4), "z_sem": torch.ones(1, 4, 4), "id": "a"}
    WriteReconstructiond(["x_T", "z_sem"], tmp_path / "out", [case], PREPROCESSING)(item)
    values = [np.unique(nib.load(tmp_path / "out" / name / "a.nii.gz").get_fdata()) for name in ("x_T", "z_sem")]
    np.testing.assert_allclose(np.concatenate(values), [28, 35])


def test_files_are_replaced_only_if_asked(case, tmp_path):
    item = {"pred": torch.zeros(1, 4, 4), "id": "a"}
    WriteReconstructiond("pred", tmp_path / "out", [case], PREPROCESSING)(item)
    for grid in ("native", "model"):
        with pytest.raises(ConfigError, match=r"^a\.nii\.gz: exists; set overwrite"):
            WriteReconstructiond("pred", tmp_path / "out", [case], PREPROCESSING, grid=grid)(item)
    item = {"pred": torch.ones(1, 4, 4), "id": "a"}
    WriteReconstructiond("pred", tmp_path / "out", [case], PREPROCESSING, overwrite=True)(item)
    np.testing.assert_allclose(nib.load(tmp_path / "out" / "pred" / "a.nii.gz").get_fdata(), 35)


def test_a_dicom_case_also_becomes_a_series(tmp_path):
    source = shutil.copy(get_testdata_file("MR_small.dcm", download=False), tmp_path / "mr.dcm")
    case = Case("a", {"image": tmp_path / "mr.dcm"}, "a")
    image = NativeSpace(PREPROCESSING, case.item()).image
    writer = WriteReconstructiond("pred", tmp_path / "out", [case], PREPROCESSING, folders="x_T", dicom=True)
    writer({"pred": image, "id": "a"})
    written = tmp_path / "out" / "x_T" / "dicom" / "a.dcm"
    np.testing.assert_allclose(read_scan(written).array, read_scan(source).array, atol=1)
    assert pydicom.dcmread(written).SeriesDescription == "monai_diffae reconstruction from x_T"


def test_what_cannot_be_written_is_one_line(case, tmp_path):
    lossy = Compose([*PREPROCESSING.transforms, NormalizeIntensityd("image")])
    with pytest.raises(ConfigError, match="NormalizeIntensityd cannot be undone.*; or use grid model$"):
        WriteReconstructiond("pred", tmp_path, [case], lossy)
    WriteReconstructiond("pred", tmp_path, [case], lossy, grid="model")
    with pytest.raises(ConfigError, match="dicom: DICOM series are written in the scan's own space"):
        WriteReconstructiond("pred", tmp_path, [case], PREPROCESSING, grid="model", dicom=True)
    with pytest.raises(ConfigError, match="grid: 'scan' is not one of native, model"):
        WriteReconstructiond("pred", tmp_path, [case], PREPROCESSING, grid="scan")
    with pytest.raises(ConfigError, match="id: 'b' is not a case of the cohort"):
        WriteReconstructiond("pred", tmp_path, [case], PREPROCESSING)({"pred": torch.zeros(1, 4, 4), "id": "b"})
