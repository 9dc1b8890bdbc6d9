from __future__ import annotations

import resource
import signal
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from scan_files import as_nobody, refusal, save_nifti, values

from monai_diffae.data.scans import read_scan, read_shape, slice_volume, write_scan
from monai_diffae.errors import ConfigError, MachineError, ScanError


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_nifti_values_and_geometry(tmp_path: Path, suffix: str, dtype: type) -> None:
    array = (values(5, 6, 7)).astype(dtype)
    affine = nib.affines.from_matvec(np.diag([-2.0, 3, 4]), [10, 20, 30])
    scan = read_scan(save_nifti(tmp_path / f"a{suffix}", array, affine), spatial_dims=3, channels=1)
    np.testing.assert_array_equal(scan.array[0], array.astype(np.float32))
    assert scan.array.dtype == np.float32
    np.testing.assert_allclose(scan.affine, affine)
    assert scan.spacing_mm == (2, 3, 4)


def test_nifti_2_big_endian_slope_and_units(tmp_path: Path) -> None:
    array = (values(5, 6, 7)).astype(np.int16)
    nib.save(nib.Nifti2Image(array, np.eye(4)), tmp_path / "two.nii.gz")
    np.testing.assert_array_equal(read_scan(tmp_path / "two.nii.gz").array[0], array)
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(np.dtype(">i2"))
    header.set_slope_inter(0.5, 3)
    header.set_xyzt_units("micron")
    image = nib.Nifti1Image(array.astype(">i2"), np.diag([1000.0, 1000, 2000, 1]), header)
    nib.save(image, tmp_path / "big.nii")
    raw = bytearray((tmp_path / "big.nii").read_bytes())
    scan = read_scan(tmp_path / "big.nii")
    np.testing.assert_allclose(scan.array[0], nib.load(tmp_path / "big.nii").get_fdata(), rtol=1e-4)
    np.testing.assert_allclose(scan.spacing_mm, (1, 1, 2), rtol=1e-5)
    assert raw[:4] == (348).to_bytes(4, "big")


@pytest.mark.goal(id="R9")
@pytest.mark.parametrize(
    ("slope", "inter", "expected"),
    [(0, 7, 1), (np.nan, 7, 1), (2, 3, 5), (np.inf, 0, None), (-np.inf, 0, None), (2, np.inf, None), (2, np.nan, None)],
)
def test_a_nifti_scaling_that_is_not_finite_is_refused(
    tmp_path: Path, slope: float, inter: float, expected: float | None
) -> None:
    """The standard says that a slope of 0 means no scaling, and common tools say the same of NaN."""
    path = save_nifti(tmp_path / "a.nii", values(4, 5, 6).astype(np.int16))
    stored = read_scan(path).array
    raw = bytearray(path.read_bytes())
    raw[112:120] = np.array([slope, inter], "<f4").tobytes()
    path.write_bytes(raw)
    if expected is None:
        wrong = f"a.nii: its scaling is not finite (scl_slope {slope:g}, scl_inter {inter:g})"
        assert refusal(path) == f"{wrong}; export it again, or set the right scaling"
        with pytest.raises(ScanError, match="its scaling is not finite"):
            read_shape(path)
    else:
        np.testing.assert_array_equal(read_scan(path).array, stored if expected == 1 else stored * 2 + 3)


def test_trailing_axes_of_one_are_dropped(tmp_path: Path) -> None:
    assert read_scan(save_nifti(tmp_path / "a.nii", values(4, 5, 6, 1))).array.shape == (1, 4, 5, 6)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mhd"])
@pytest.mark.parametrize("packed", [False, True])
def test_itk_formats_agree_with_nifti(tmp_path: Path, suffix: str, packed: bool) -> None:
    image = sitk.GetImageFromArray(values(7, 6, 5))
    image.SetSpacing((1, 2, 3))
    image.SetOrigin((4, 5, 6))
    image.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, 1))
    sitk.WriteImage(image, str(tmp_path / f"a{suffix}"), packed)
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    scan, other = read_scan(tmp_path / f"a{suffix}"), read_scan(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(scan.array, other.array)
    np.testing.assert_allclose(scan.affine, other.affine, atol=1e-5)
    assert read_shape(tmp_path / f"a{suffix}") == read_shape(tmp_path / "a.nii.gz") == (6, 5, 7)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "1", "P", "I;16"])
def test_grey_pictures_have_one_channel(tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        array = np.linspace(0, 65535, 12, dtype=np.uint16).reshape(3, 4)
        Image.fromarray(array).save(tmp_path / "a.png")
    else:
        array = np.array([[0, 255, 0, 255], [255, 0, 0, 255], [0, 0, 255, 255]], np.uint8)
        Image.fromarray(array).convert(mode).save(tmp_path / "a.png")
    scan = read_scan(tmp_path / "a.png", spatial_dims=2, channels=1)
    np.testing.assert_array_equal(scan.array[0], array)
    np.testing.assert_array_equal(scan.affine, np.eye(4))
    assert read_shape(tmp_path / "a.png") == (3, 4)


def test_colour_and_exif(tmp_path: Path) -> None:
    colour = np.random.default_rng(0).integers(0, 255, (4, 5, 3), np.uint8)
    Image.fromarray(colour).save(tmp_path / "c.png")
    assert read_scan(tmp_path / "c.png", channels=3).array.shape == (3, 4, 5)
    assert "3 channels" in refusal(tmp_path / "c.png", channels=1)
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = Image.fromarray(colour[..., 0])
    grey.save(tmp_path / "turned.jpg", exif=exif, quality=100)
    assert read_scan(tmp_path / "turned.jpg").array.shape == (1, *read_shape(tmp_path / "turned.jpg")) == (1, 5, 4)
    assert "2 channels" not in refusal(tmp_path / "turned.jpg", channels=3)
    exif[0x0112] = 9  # no orientation
    grey.save(tmp_path / "odd.jpg", exif=exif)
    assert read_scan(tmp_path / "odd.jpg").array.shape == (1, *read_shape(tmp_path / "odd.jpg")) == (1, 4, 5)


@pytest.mark.goal(id="R9")
@pytest.mark.parametrize("components", [2, 3, 4])
def test_colour_pictures_of_16_bits_are_refused(tmp_path: Path, components: int) -> None:
    """PIL reads them with 8 bits: of the 4096 levels of a radiograph with 12 bits, 16 would be left."""
    path = tmp_path / "deep.png"
    deep = np.repeat(np.arange(20, dtype=np.uint16).reshape(4, 5, 1) * 200, components, axis=2)
    deep[..., -1] = 65535 if components != 3 else deep[..., -1]
    sitk.WriteImage(sitk.GetImageFromArray(deep, isVector=True), str(path))
    line = "deep.png: a picture with colours or an alpha channel has 16 bits; save it as a grey picture of 16 bits, or "
    assert line in refusal(path)
    with pytest.raises(ScanError, match="has 16 bits"):
        read_shape(path)


def test_written_scans_come_back(tmp_path: Path) -> None:
    affine = nib.affines.from_matvec(np.diag([-1.0, 2, 3]), [5, 6, 7])
    volume = values(1, 3, 4, 5) * 1000
    scan = read_scan(write_scan(tmp_path / "v.nii.gz", volume, affine))
    np.testing.assert_array_equal(scan.array, volume)
    np.testing.assert_allclose(scan.affine, affine)
    plane = values(1, 4, 6)
    np.testing.assert_array_equal(read_scan(write_scan(tmp_path / "p.nii.gz", plane), spatial_dims=2).array, plane)
    for axis in ("axial", "coronal", "sagittal"):
        part = slice_volume(scan, axis, 1)  # type: ignore[arg-type]
        back = read_scan(write_scan(tmp_path / "s.nii.gz", part.array, part.affine), spatial_dims=2)
        np.testing.assert_array_equal(back.array, part.array)
        np.testing.assert_allclose(back.affine, part.affine, atol=1e-5)
    write_scan(tmp_path / "a.png", np.array([[[-2.0, -1, 0, 1, 2]]]), value_range=(-1, 1))
    assert np.asarray(Image.open(tmp_path / "a.png")).tolist() == [[0, 0, 128, 255, 255]]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "p.nii.gz", "s.nii.gz", "v.nii.gz"]
    for wrong in ("a.jpg", "v.png"):
        with pytest.raises(ConfigError):
            write_scan(tmp_path / wrong, volume)


def write_to_a_full_disk(path: Path) -> str:
    """The error of a process whose files cannot grow beyond 4 KiB."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    with pytest.raises(MachineError) as error:
        write_scan(path, np.random.default_rng(0).random((1, 32, 32, 32)))
    return str(error.value)


@pytest.mark.goal(id="R16")
def test_a_failed_write_keeps_the_old_scan_and_leaves_nothing_else(
    in_a_fork: Callable[..., str], tmp_path: Path
) -> None:
    path = write_scan(tmp_path / "a.nii.gz", values(1, 3, 4, 5))
    old = path.read_bytes()
    assert in_a_fork(write_to_a_full_disk, path).startswith("a.nii.gz: cannot be written")
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["a.nii.gz"]


def test_a_forbidden_folder_is_one_line(tmp_path: Path) -> None:
    with as_nobody(tmp_path), pytest.raises(MachineError, match="cannot be written"):
        write_scan(tmp_path / "a.nii", values(1, 3, 4, 5))
