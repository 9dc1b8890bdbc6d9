from __future__ import annotations

import gzip
import io
import itertools
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scan_files import save_nifti, save_series, shared, values

from monai_diffae.data.scans import Scan, read_scan, read_shape, slice_volume, write_scan
from monai_diffae.errors import ConfigError, MachineError, ScanError


def refusal(path: Path | str, **wanted: object) -> str:
    """The one line that refuses a file."""
    with pytest.raises(ScanError) as caught:
        read_scan(path, **wanted)  # type: ignore[arg-type]
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) <= 200
    assert str(Path(path).parent) not in line
    assert "; " in line
    return line


# ---------------------------------------------------------------- what is read


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


# ---------------------------------------------------------------- DICOM


@pytest.mark.parametrize("suffix", [".dcm", "", ".IMA"])
def test_series_in_spatial_order(tmp_path: Path, suffix: str) -> None:
    scan = read_scan(save_series(tmp_path / "ct", suffix=suffix), spatial_dims=3, channels=1)
    assert scan.array.shape == (1, 6, 4, 5)
    assert scan.modality == "CT"
    np.testing.assert_allclose(scan.spacing_mm, (0.5, 0.75, 2))
    assert [int(v) for v in scan.array[0, 0, 0]] == [0, 100, 200, 300, 400]
    assert read_shape(tmp_path / "ct") == (6, 4, 5)


def test_two_series_are_told_apart(tmp_path: Path) -> None:
    save_series(tmp_path / "ct", 5, "1.2.3", "a")
    save_series(tmp_path / "ct", 3, "1.2.4", "b")
    assert "2 DICOM series" in refusal(tmp_path / "ct")
    assert read_scan(f"{tmp_path / 'ct'}#series=1.2.4").array.shape == (1, 6, 4, 3)
    assert "UID" in refusal(f"{tmp_path / 'ct'}#series=9")


def test_defective_series(tmp_path: Path) -> None:
    whole = save_series(tmp_path / "whole")
    gap = shutil.copytree(whole, tmp_path / "gap")
    (gap / "003.dcm").unlink()
    assert "slice is missing" in refusal(gap)
    doubled = shutil.copytree(whole, tmp_path / "doubled")
    shutil.copy(doubled / "003.dcm", doubled / "copy.dcm")
    assert "one position" in refusal(doubled)
    cut = shutil.copytree(whole, tmp_path / "cut")
    (cut / "002.dcm").write_bytes((cut / "002.dcm").read_bytes()[:-20])
    assert "002.dcm" in refusal(cut)
    junk = shutil.copytree(whole, tmp_path / "junk")
    (junk / "006.dcm").write_bytes(b"not DICOM")
    assert "not readable DICOM" in refusal(junk)
    (tmp_path / "none").mkdir()
    assert "no readable DICOM" in refusal(tmp_path / "none")


def test_radiograph_and_monochrome1(tmp_path: Path) -> None:
    folder = save_series(tmp_path / "dx", 1, modality="DX")
    path = folder / "001.dcm"
    scan = read_scan(path, spatial_dims=2)
    assert scan.array.shape == (1, 4, 6) == (1, *read_shape(path))
    np.testing.assert_array_equal(scan.array[0], np.arange(24).reshape(4, 6))
    np.testing.assert_allclose(scan.spacing_mm, (0.75, 0.5))
    data = path.read_bytes()
    assert data.count(b"MONOCHROME2") == 1
    path.write_bytes(data.replace(b"MONOCHROME2", b"MONOCHROME1"))
    inverted = read_scan(path).array[0]
    np.testing.assert_array_equal(inverted - inverted.min(), 23 - np.arange(24).reshape(4, 6))


def test_real_dicom_is_read_whole() -> None:
    scan = read_scan(shared("dicom_mr_brain_pgbm003") / "11-T1post-18670", spatial_dims=3, channels=1)
    assert scan.array.shape == (1, 280, 320, 22)
    np.testing.assert_allclose(scan.spacing_mm, (0.6875, 0.6875, 6.5), rtol=1e-4)
    scan = read_scan(shared("hippocampus_hcrop_dicom") / "Study1_13_HCropVolume")
    assert scan.array.shape == (1, 35, 51, 32)


def test_real_dicom_cut_anywhere(tmp_path: Path) -> None:
    file = next(shared("hippocampus_hcrop_dicom").glob("*/1.dcm"))
    data = file.read_bytes()
    for part in (0.0, 0.05, 0.3, 0.7, 0.999):
        (tmp_path / "cut.dcm").write_bytes(data[: int(part * len(data))])
        refusal(tmp_path / "cut.dcm")


# ---------------------------------------------------------------- what is refused


def _write_header(path: Path, **fields: object) -> Path:
    save_nifti(path)
    image = nib.Nifti1Header.from_fileobj(io.BytesIO(path.read_bytes()), check=False)
    for name, value in fields.items():
        image[name] = value
    data = path.read_bytes()
    path.write_bytes(image.binaryblock + data[348:])
    return path


def test_missing_empty_and_foreign_files(tmp_path: Path) -> None:
    assert refusal(tmp_path / "no.nii.gz").startswith("no.nii.gz: there is no such file")
    for suffix in (".nii", ".nii.gz", ".png", ".dcm", ".mha", ".nrrd", ".jpg", ".xyz"):
        (tmp_path / f"e{suffix}").write_bytes(b"")
        assert "empty" in refusal(tmp_path / f"e{suffix}")
        (tmp_path / f"junk{suffix}").write_bytes(b"garbage " * 100)
        refusal(tmp_path / f"junk{suffix}")
    (tmp_path / "page.nii.gz").write_bytes(b"<!DOCTYPE html><html>" + b" " * 500)
    assert "web page" in refusal(tmp_path / "page.nii.gz")
    (tmp_path / "lfs.nii.gz").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "git-lfs" in refusal(tmp_path / "lfs.nii.gz")
    long = tmp_path / f"{'x' * 200}.nii"
    long.write_bytes(b"garbage" * 100)
    refusal(long)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("suffix", [".nii.gz", ".png", ".dcm", ".mha", ""])
def test_no_permission(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"x" * 500)
    path.chmod(0)
    assert "permission" in refusal(path)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("part", [0.01, 0.3, 0.9, 0.999])
def test_truncated_nifti(tmp_path: Path, suffix: str, part: float) -> None:
    path = save_nifti(tmp_path / f"a{suffix}", values(12, 12, 12))
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    refusal(path)


def test_200_bit_flips_in_a_gzip_stream(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "a.nii.gz", values(12, 12, 12))
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    # the ten bytes of gzip's own header hold a date and an operating system, which change nothing
    for byte, bit in zip(rng.integers(10, len(data), 200), rng.integers(0, 8, 200), strict=True):
        flipped = bytearray(data)
        flipped[byte] ^= 1 << int(bit)
        path.write_bytes(flipped)
        try:
            scan = read_scan(path)
        except ScanError:
            continue
        # the file name within gzip's header, behind the fixed part, is no data either
        assert byte < 10 + len("a.nii") + 1, byte
        np.testing.assert_array_equal(scan.array[0], values(12, 12, 12))


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mhd"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("part", [0.1, 0.6, 0.99])
def test_truncated_itk_files(tmp_path: Path, suffix: str, packed: bool, part: float) -> None:
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(values(9, 9, 9)), str(path), packed)
    data = next(iter(tmp_path.glob("a.*raw")), path)
    data.write_bytes(data.read_bytes()[: int(part * data.stat().st_size)])
    refusal(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.9])
def test_truncated_pictures(tmp_path: Path, suffix: str, part: float) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    refusal(path)


def test_wrong_dimensions_and_channels(tmp_path: Path) -> None:
    assert "4D" in refusal(save_nifti(tmp_path / "four.nii.gz", values(4, 4, 4, 3)))
    image = sitk.JoinSeries([sitk.GetImageFromArray(values(4, 4, 4))] * 2)
    sitk.WriteImage(image, str(tmp_path / "four.nrrd"))
    assert "4D" in refusal(tmp_path / "four.nrrd")
    volume = save_nifti(tmp_path / "three.nii.gz")
    assert "expected a 2D image" in refusal(volume, spatial_dims=2)
    assert "1 channels, expected 2" in refusal(volume, channels=2)
    Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).save(tmp_path / "two.png")
    assert "expected a 3D volume" in refusal(tmp_path / "two.png", spatial_dims=3)
    flat = save_nifti(tmp_path / "flat.nii.gz", values(6, 7, 1))
    assert read_scan(flat, spatial_dims=2).array.shape == (1, 7, 6) == (1, *read_shape(flat))
    assert "2D" in refusal(flat, spatial_dims=3)
    alpha = np.full((4, 4, 2), 128, np.uint8)
    alpha[0, 0] = 0
    Image.fromarray(alpha, "LA").save(tmp_path / "alpha.png")
    assert "transparent" in refusal(tmp_path / "alpha.png")


def test_true_colour_dicom_is_refused(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 255, (4, 6, 3), np.uint8), isVector=True)
    sitk.WriteImage(image, str(tmp_path / "rgb.dcm"))
    assert "3 channels" in refusal(tmp_path / "rgb.dcm", channels=1)
    assert read_scan(tmp_path / "rgb.dcm", channels=3).array.shape == (3, 4, 6)


def test_values_that_cannot_be_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    array = values(4, 4, 4)
    array[0, 0, :2] = np.nan
    array[1, 1, 1] = np.inf
    path = save_nifti(tmp_path / "nan.nii.gz", array)
    line = refusal(path)
    assert "3 of its voxels" in line
    assert "nonfinite" in line
    assert read_scan(path, nonfinite=-1.0).array[0, 1, 1, 1] == -1
    assert "3 voxels" in caplog.text
    assert "same value" in refusal(save_nifti(tmp_path / "one.nii.gz", np.ones((4, 4, 4), np.float32)))
    Image.new("L", (4, 4), 7).save(tmp_path / "one.png")
    assert "same value (7)" in refusal(tmp_path / "one.png")


@pytest.mark.parametrize("spacing", [0.0, -1.0, np.nan, np.inf])
def test_wrong_spacing(tmp_path: Path, spacing: float) -> None:
    path = _write_header(tmp_path / "a.nii", pixdim=[1, 1, spacing, 1, 0, 0, 0, 0])
    assert f"spacing (pixdim) is 1 x {spacing:g} x 1 mm" in refusal(path)


def test_wrong_geometry_and_types(tmp_path: Path) -> None:
    path = _write_header(tmp_path / "a.nii", srow_x=[1, 1, 0, 0], srow_y=[1, 1, 0, 0])
    assert "singular" in refusal(path)
    path = _write_header(tmp_path / "z.nii", srow_x=[0, 0, 0, 0])
    assert "spacing" in refusal(path)
    nib.save(nib.Nifti1Image(values(4, 4, 4).astype(np.complex64), np.eye(4)), tmp_path / "c.nii.gz")
    assert "complex" in refusal(tmp_path / "c.nii.gz")
    rgb = np.zeros((4, 4, 4), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    nib.save(nib.Nifti1Image(rgb, np.eye(4)), tmp_path / "rgb.nii.gz")
    assert "records" in refusal(tmp_path / "rgb.nii.gz")
    sitk.WriteImage(
        sitk.Cast(sitk.GetImageFromArray(values(4, 4, 4)), sitk.sitkComplexFloat32), str(tmp_path / "c.mha")
    )
    assert "2 channels, expected 1" in refusal(tmp_path / "c.mha", channels=1)
    text = b"ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementType = MET_UCHAR\nElementSpacing = %s\n"
    for spacing in (b"0 1 1", b"-1 1 1", b"nan 1 1", b"0.0 1 1"):
        (tmp_path / "s.mha").write_bytes(text % spacing + b"ElementDataFile = LOCAL\n" + bytes(range(64)))
        assert "spacing" in refusal(tmp_path / "s.mha")


def test_sheared_affine_is_read_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    affine = np.eye(4)
    affine[0, 1] = 0.3
    image = nib.Nifti1Image(values(4, 4, 4), None)
    image.set_sform(affine, 1)
    nib.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(read_scan(tmp_path / "a.nii").affine, affine, rtol=1e-6)
    assert "sheared" in caplog.text


def test_header_bomb_is_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    path = _write_header(tmp_path / "bomb.nii", dim=[3, 30000, 30000, 3000, 1, 1, 1, 1])
    packed = tmp_path / "bomb.nii.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    (tmp_path / "bomb.mha").write_bytes(
        b"ObjectType = Image\nNDims = 3\nDimSize = 30000 30000 3000\nElementType = MET_FLOAT\nElementDataFile = LOCAL\n0"
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for bomb in (path, packed, tmp_path / "bomb.mha"):
        assert "GiB" in refusal(bomb)
        with pytest.raises(ScanError):
            read_shape(bomb)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def test_gzip_bomb_behind_the_voxels(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "a.nii")
    with gzip.open(tmp_path / "b.nii.gz", "wb", compresslevel=1) as stream:
        stream.write(path.read_bytes())
        for _ in range(80):
            stream.write(bytes(1 << 20))
    assert "far more data" in refusal(tmp_path / "b.nii.gz")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_fuzzed_files_give_a_scan_or_one_line(tmp_path: Path, data: st.DataObject) -> None:
    suffix = data.draw(st.sampled_from([".nii", ".mha", ".nrrd", ".png", ".dcm"]))
    good = tmp_path / f"good{suffix}"
    if not good.exists():
        if suffix == ".nii":
            save_nifti(good)
        elif suffix == ".png":
            Image.fromarray(values(9, 9).astype(np.uint8)).save(good)
        else:
            shape = (1, 6, 7) if suffix == ".dcm" else (5, 6, 7)
            sitk.WriteImage(sitk.GetImageFromArray(values(*shape).astype(np.int16)), str(good))
    raw = bytearray(good.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, min(len(raw), 600) - 1))] = data.draw(st.integers(0, 255))
    bad = tmp_path / f"bad{suffix}"
    bad.write_bytes(raw)
    try:
        scan = read_scan(bad)
    except ScanError:
        refusal(bad)
    else:
        assert scan.array.dtype == np.float32
        assert np.isfinite(scan.array).all()


def test_simpleitk_and_nibabel_stay_silent(tmp_path: Path) -> None:
    folder = save_series(tmp_path / "ct")
    (folder / "006.dcm").write_bytes(b"junk")
    (tmp_path / "a.mha").write_bytes(b"ObjectType = Image\nNDims = 3\n")
    bad = _write_header(tmp_path / "a.nii", pixdim=[1, -1, 1, 1, 0, 0, 0, 0])
    code = (
        "import sys\nfrom monai_diffae.data.scans import read_scan\nfrom monai_diffae.errors import ScanError\n"
        "for p in sys.argv[1:]:\n    try: read_scan(p)\n    except ScanError: pass\n    else: raise SystemExit(p)\n"
    )
    command = [sys.executable, "-c", code, str(folder), str(tmp_path / "a.mha"), str(bad)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# ---------------------------------------------------------------- slices

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


# ---------------------------------------------------------------- writing


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


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = write_scan(tmp_path / "a.nii.gz", values(1, 3, 4, 5))
    old = path.read_bytes()
    code = (
        "import resource, signal, sys\nimport numpy as np\nfrom monai_diffae.data.scans import write_scan\n"
        "from monai_diffae.errors import MachineError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: write_scan(sys.argv[1], np.random.rand(1, 32, 32, 32))\nexcept MachineError as e: print(e)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.startswith("a.nii.gz: cannot be written"), done.stderr
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["a.nii.gz"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_forbidden_folder_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(MachineError, match="cannot be written"):
        write_scan(tmp_path / "a.nii", values(1, 3, 4, 5))
