from __future__ import annotations

import itertools
import subprocess

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_diffae.data.scans import read_scan, write_scan
from monai_diffae.errors import ConfigError, MachineError

RNG = np.random.default_rng(0)
OBLIQUE = np.array([[-0.9, 0.1, 0.3, 40.0], [0.1, 1.1, -0.2, -70.0], [0.1, 0.2, 2.9, 13.0], [0, 0, 0, 1]])


@settings(max_examples=30, deadline=None)
@given(
    axes=st.permutations([0, 1, 2]),
    signs=st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3),
    spacing=st.tuples(*[st.floats(0.1, 10)] * 3),
    origin=st.tuples(*[st.floats(-1000, 1000)] * 3),
    channels=st.sampled_from([1, 2]),
)
def test_nrrd_has_the_affine_and_voxels_of_the_array(tmp_path_factory, axes, signs, spacing, origin, channels):
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, axes] * signs * np.array(spacing)
    affine[:3, 3] = origin
    array = RNG.random((channels, 3, 4, 5)).astype(np.float32)
    scan = read_scan(write_scan(tmp_path_factory.mktemp("nrrd") / "a.nrrd", array, affine))
    np.testing.assert_array_equal(scan.array, array)
    np.testing.assert_allclose(scan.affine, affine, rtol=1e-12, atol=1e-9)


def test_nrrd_of_an_oblique_volume_lies_where_the_nifti_lies(tmp_path):
    affine = OBLIQUE.copy()
    affine[:3, :3] = np.linalg.qr(OBLIQUE[:3, :3])[0] * (0.9, 1.1, 2.9)
    array = RNG.random((1, 3, 4, 5)).astype(np.float32)
    images = [sitk.ReadImage(str(write_scan(tmp_path / name, array, affine))) for name in ("a.nrrd", "a.nii")]
    for image in images:
        np.testing.assert_allclose(image.TransformIndexToPhysicalPoint((2, 3, 4)),
            (np.diag([-1, -1, 1, 1]) @ affine @ (2, 3, 4, 1))[:3], rtol=1e-5)  # fmt: skip
    np.testing.assert_array_equal(*(sitk.GetArrayFromImage(image) for image in images))


def test_a_sheared_affine_is_kept(tmp_path):
    scan = read_scan(write_scan(tmp_path / "a.nrrd", RNG.random((1, 3, 4, 5)), OBLIQUE))
    np.testing.assert_allclose(scan.affine, OBLIQUE, atol=1e-9)


@pytest.mark.parametrize(
    ("suffix", "dtype"), list(itertools.product((".nii.gz", ".nrrd"), ("bool", "uint8", "int16", "float32", "float64")))
)
def test_types(tmp_path, suffix, dtype):
    array = RNG.integers(0, 2, (1, 3, 4, 5))
    path = write_scan(tmp_path / f"a{suffix}", array, dtype=dtype)
    image = sitk.ReadImage(str(path))
    assert sitk.GetArrayFromImage(image).dtype == ("uint8" if dtype == "bool" else dtype)
    np.testing.assert_array_equal(read_scan(path).array, array)
    again = write_scan(tmp_path / f"b{suffix}", array, dtype=dtype)
    if suffix == ".nrrd":  # gzipped NIfTI has a time in it
        assert again.read_bytes() == path.read_bytes()


def test_a_picture_becomes_a_volume_of_one_slice(tmp_path):
    array = RNG.random((1, 3, 5)).astype(np.float32)
    nrrd, nifti = (sitk.ReadImage(str(write_scan(tmp_path / name, array))) for name in ("a.nrrd", "a.nii"))
    assert nrrd.GetSize() == nifti.GetSize() == (3, 5, 1)
    assert nrrd.GetDirection() == nifti.GetDirection() == (0, 1, 0, 1, 0, 0, 0, 0, 1)  # as a viewer lays out a picture
    np.testing.assert_array_equal(sitk.GetArrayFromImage(nrrd)[0].T, array[0])


@pytest.mark.goal(id="R11")
def test_values_that_do_not_fit_are_clipped_and_counted(tmp_path, caplog):
    array = np.array([-1.0, 0.5, 1.5, 255.4, 256.0, 9e9]).reshape(1, 1, 2, 3)
    for suffix in (".nrrd", ".nii"):
        path = write_scan(tmp_path / f"a{suffix}", array, dtype=np.uint8)
        assert sitk.GetArrayFromImage(sitk.ReadImage(str(path))).T.ravel().tolist() == [0, 0, 2, 255, 255, 255]
        assert f"a{suffix}: 3 voxels do not fit into uint8 and were clipped" in caplog.text
    largest = write_scan(tmp_path / "b.nrrd", array * 0 + 1e30, dtype=np.int64)
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(largest))).min() > 9.2e18  # not wrapped to negative numbers


@pytest.mark.parametrize(
    ("name", "dtype", "message"),
    [
        ("a.mha", np.uint8, r"a.mha: cannot hold an array \[1, 2, 3, 4\]; use .nii.gz or .nrrd"),
        ("a.png", np.uint8, r"a.png: cannot hold an array \[1, 2, 3, 4\]; use .nii.gz or .nrrd"),
        ("a.nrrd", np.float16, "a.nrrd: NRRD cannot hold float16; use float32 or an integer type"),
        ("a.nrrd", np.uint8, "a.nrrd: uint8 cannot hold values that are NaN or infinite; use float32"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(tmp_path, name, dtype, message):
    array = np.full((1, 2, 3, 4), np.nan)
    with pytest.raises(ConfigError, match=f"^{message}"):
        write_scan(tmp_path / name, array, dtype=dtype)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_named(tmp_path):
    """A file system of 64 KiB, if this process may mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("this process may not mount a file system")
    try:
        with pytest.raises(MachineError, match="cannot be written"):
            write_scan(folder / "a.nrrd", RNG.random((1, 40, 40, 40)))
        assert not list(folder.iterdir())
    finally:
        subprocess.run(["umount", folder], check=True)


def test_files_have_the_units_of_millimetres(tmp_path):
    assert nib.load(write_scan(tmp_path / "a.nii.gz", np.ones((1, 2, 3, 4)))).header.get_xyzt_units()[0] == "mm"
