"""A volume through the 3D bundle's pipeline and back: the same shape, affine, units and type."""

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from scan_files import shared

from monai_diffae.data.scans import read_scan
from monai_diffae.transforms import NativeSpace, write_native

BUNDLE = Path(__file__).parents[2] / "bundles" / "diffae_3d" / "configs" / "train.json"
ISOTROPIC, THICK = (1.0, 1.0, 1.0), (0.8, 0.8, 5.0)
ORIENTATIONS = ["RAS", "LPS", "LAS", "SRA", "IPL", "ARS", "PIR", "SLP"]


def pipeline(**values):
    parser = ConfigParser()
    parser.read_config(str(BUNDLE))
    parser.update({"dataset_dir": ".", **values})
    return parser.get_parsed_content("preprocessing")


def volume(spacing, size_mm=36.0, seed=0):
    """Smooth blobs in mm, the same whatever the spacing, 0 to 900."""
    shape = [max(6, round(size_mm / mm)) for mm in spacing]
    grid = np.stack(np.meshgrid(*(np.arange(n) * mm for n, mm in zip(shape, spacing, strict=True)), indexing="ij"))
    generator = np.random.default_rng(seed)
    centres, widths = generator.uniform(8, 28, (6, 3)), generator.uniform(6, 10, 6)
    blobs = [
        np.exp(-((grid - c[:, None, None, None]) ** 2).sum(axis=0) / w**2) for c, w in zip(centres, widths, strict=True)
    ]
    total = np.sum(blobs, axis=0)
    return 900 * total / total.max()


def save(path, array, spacing, codes, dtype=np.int16):
    """A volume given in RAS, stored in another order of its axes."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = (-17.3, 4.25, 101.7)
    image = nib.Nifti1Image(array.astype(dtype), affine)
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(codes)
    )
    turned = image.as_reoriented(turn)
    turned.header.set_xyzt_units("mm", "sec")
    nib.save(turned, path)
    return path


@pytest.mark.goal(id="R10")
@pytest.mark.parametrize(("codes", "spacing"), itertools.product(ORIENTATIONS, [ISOTROPIC, THICK]))
def test_there_and_back(tmp_path, codes, spacing):
    array = volume(spacing)
    source = save(tmp_path / "in.nii.gz", array, spacing, codes)
    native = NativeSpace(pipeline(spacing_mm=[1.0, 1.0, 1.0], image_size=[48, 48, 48]), {"image": str(source)})
    assert native.image.shape == (1, 48, 48, 48)
    made = nib.load(write_native(tmp_path / "out.nii.gz", native.back(native.image), native.scan))
    before = nib.load(source)
    assert made.shape == before.shape
    assert np.array_equal(made.affine, before.affine)
    for code in ("sform_code", "qform_code", "xyzt_units"):
        assert made.header[code] == before.header[code]
    assert made.get_data_dtype() == before.get_data_dtype()
    assert native.field.all()
    error = np.abs(made.get_fdata() - before.get_fdata())
    assert error.mean() < 9  # 1 % of the range: two interpolations, and percentiles that are cut off
    # the model sees the same whatever the order of the file's axes
    plain = save(tmp_path / "plain.nii.gz", array, spacing, "RAS")
    seen = NativeSpace(pipeline(spacing_mm=[1.0, 1.0, 1.0], image_size=[48, 48, 48]), {"image": str(plain)}).image
    assert (native.image - seen).abs().max() < 1e-3


def header_of(dtype, slope=None):
    image = nib.Nifti1Image(np.zeros((12, 10, 8), dtype), np.diag([1.0, 1, 2, 1]))
    image.header.set_slope_inter(slope, 10.0 if slope else None)
    return image


@pytest.mark.goal(id="R10")
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_types_are_kept(tmp_path, dtype):
    stored = (np.random.default_rng(0).random((12, 10, 8)) * 200).astype(dtype)
    nib.save(nib.Nifti1Image(stored, np.diag([1.0, 1, 2, 1])), tmp_path / "in.nii.gz")
    scan = read_scan(tmp_path / "in.nii.gz")
    made = nib.load(write_native(tmp_path / "out.nii.gz", scan.array, scan))
    assert made.get_data_dtype() == dtype
    np.testing.assert_array_equal(np.asarray(made.dataobj), stored.astype(np.float32).astype(dtype))
    difference = nib.load(write_native(tmp_path / "d.nii.gz", scan.array - 100.25, scan, np.float32))
    assert difference.get_data_dtype() == np.float32
    np.testing.assert_allclose(difference.get_fdata(), scan.array[0] - 100.25, rtol=1e-6)


def test_slopes_codes_and_units_are_kept_and_texts_are_not(tmp_path):
    affine = np.array([[0, -1.5, 0, 3], [2.0, 0, 0, -7], [0, 0, 4, 1.1], [0, 0, 0, 1]])
    image = nib.Nifti1Image(np.arange(960, dtype=np.int16).reshape(12, 10, 8), affine)
    image.set_sform(affine, code=4)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("meter")
    image.header["descrip"] = b"Doe^Jane"
    image.header.set_slope_inter(0.5, -100)
    nib.save(image, tmp_path / "in.nii.gz")
    scan = read_scan(tmp_path / "in.nii.gz")
    assert scan.array.min() == -100
    assert scan.spacing_mm == pytest.approx((2000, 1500, 4000))
    made = nib.load(write_native(tmp_path / "out.nii.gz", scan.array, scan))
    np.testing.assert_array_equal(made.get_fdata(), image.get_fdata() * 0.5 - 100)
    assert made.dataobj.slope == 0.5
    assert np.array_equal(made.affine, nib.load(tmp_path / "in.nii.gz").affine)
    assert (int(made.header["sform_code"]), int(made.header["qform_code"])) == (4, 1)
    assert made.header.get_xyzt_units()[0] == "meter"
    assert b"Doe" not in bytes(made.header.binaryblock)


@pytest.mark.goal(id="R11")
def test_values_that_do_not_fit_the_type_are_clipped_and_counted(tmp_path, caplog):
    nib.save(
        nib.Nifti1Image(np.full((6, 6, 6), 7, np.uint8) + np.eye(6, dtype=np.uint8), np.eye(4)), tmp_path / "a.nii"
    )
    scan = read_scan(tmp_path / "a.nii")
    array = scan.array.copy()
    array[0, 0, 0, :2] = (-3.0, 300.4)
    made = nib.load(write_native(tmp_path / "b.nii", array, scan))
    assert np.asarray(made.dataobj)[0, 0, :3].tolist() == [0, 255, 7]
    assert "2 voxels do not fit into uint8 and were clipped" in caplog.text


@pytest.mark.parametrize(
    "name", ["dicom_mr_brain_pgbm003/11-T1post-18670", "hippocampus_hcrop_dicom/Study1_13_HCropVolume"]
)
def test_real_series(tmp_path, name):
    set_name, _, series = name.partition("/")
    folder = shared(set_name) / series
    scan = read_scan(folder)
    spacing, size = ([1.5, 1.5, 6.5], [160, 160, 22]) if "brain" in name else ([1.5] * 3, [32, 40, 32])
    native = NativeSpace(pipeline(spacing_mm=spacing, image_size=size), {"image": str(folder)})
    assert native.image.shape == (1, *size)
    made = nib.load(write_native(tmp_path / "a.nii.gz", native.back(native.image), native.scan))
    assert made.shape == scan.array.shape[1:]
    assert np.array_equal(made.affine, scan.affine.astype(np.float32))  # NIfTI holds float32
    inside = native.field
    before, after = scan.array[0][inside], made.get_fdata()[inside]
    assert np.corrcoef(before, after)[0, 1] > 0.95


def test_downsampling_does_not_alias(tmp_path):
    """Stripes of a voxel become grey when the voxels get four times as large, not other stripes."""
    array = np.zeros((64, 24, 24))
    array[::2] = 900
    array += np.linspace(0, 10, 24)
    source = save(tmp_path / "a.nii.gz", array, ISOTROPIC, "RAS")
    transforms = pipeline(spacing_mm=[4.0, 1.0, 1.0], image_size=[16, 24, 24], percentiles=[0, 100])
    seen = transforms({"image": str(source)})["image"]
    middle = seen[0, 4:12]
    assert float(middle.std(dim=0).max()) < 0.15
    assert isinstance(seen, torch.Tensor)
