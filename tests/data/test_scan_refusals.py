from __future__ import annotations

import functools
import gzip
import io
import resource
import subprocess
import sys
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from dicom_files import make_plane
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scan_files import as_nobody, grown_mb, refusal, save_nifti, save_series, values

from monai_diffae.data.scans import read_scan, read_shape
from monai_diffae.errors import ScanError

_MHD = "ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementSpacing = 1 1 1\nElementType = MET_UCHAR\n"
_NRRD = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 4 4 4\nencoding: raw\n"


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


def _bomb(path: Path) -> Path:
    """A small file whose header declares about 400 million voxels."""
    if path.suffix in (".nii", ".gz"):
        _write_header(path.with_suffix(".nii"), dim=[3, 740, 740, 740, 1, 1, 1, 1])
        content = path.with_suffix(".nii").read_bytes()
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    elif path.suffix == ".dcm":
        tags = {"no_samples.dcm": {"SamplesPerPixel": 0}, "no_bits.dcm": {"BitsAllocated": 0}}.get(path.name, {})
        make_plane((0.0, 0.0, 0.0), Rows=20000, Columns=20000, **tags).save_as(path)
    elif path.suffix == ".jpg":
        Image.fromarray(values(24, 20).astype(np.uint8)).save(path)
        content = bytearray(path.read_bytes())
        at = content.index(b"\xff\xc0") + 5  # rows and columns in the header of the frame
        content[at : at + 4] = b"\x2f\xff\x2f\xff"
        path.write_bytes(content)
    elif path.suffix == ".nrrd":
        encoding = {"packed": "gzip", "text": "ascii"}.get(path.stem, "raw")
        header = _NRRD.replace("4 4 4", "740 740 740").replace("uchar", "double").replace("raw", encoding)
        path.write_bytes(header.encode() + b"\n" + gzip.compress(b"1 2 3" * 1000))
    else:
        header = _MHD.replace("4 4 4", "740 740 740").replace("UCHAR", "DOUBLE")
        packed = "CompressedData = True\n" if path.stem == "packed" else ""
        data = "part%d.raw 1 2 1" if path.stem == "parts" else "LOCAL"
        path.write_bytes(f"{header}{packed}ElementDataFile = {data}\n".encode() + zlib.compress(b"1 2 3" * 1000))
    return path


@pytest.mark.goal(id="R15")
@pytest.mark.parametrize(
    "name",
    [
        "a.nii", "a.nii.gz", "a.jpg", "raw.nrrd", "packed.nrrd", "text.nrrd", "raw.mha", "packed.mha", "parts.mhd",
        "a.dcm", "no_samples.dcm", "no_bits.dcm",
    ],
)  # fmt: skip
def test_a_header_that_asks_for_far_more_than_its_file_holds_is_refused_first(tmp_path: Path, name: str) -> None:
    path = _bomb(tmp_path / name)
    assert grown_mb(lambda: refusal(path)) < 20


@pytest.mark.goal(id="R15")
@pytest.mark.parametrize("name", ["scaled.nii", "scaled.nii.gz", "a.nrrd", "a.mha", "a.png"])
def test_reading_keeps_one_copy_beside_the_voxels_of_the_file(tmp_path: Path, name: str) -> None:
    voxels = np.arange(1 << 22).reshape(1 << 8, 1 << 7, 1 << 7).astype(np.int16)
    path = tmp_path / name
    if name == "a.png":
        Image.fromarray(voxels.reshape(1 << 11, 1 << 11).astype(np.uint8)).save(path)
    elif name.startswith("a."):
        sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path))
    else:
        image = nib.Nifti1Image(voxels, np.eye(4))
        image.header.set_slope_inter(0.5, -1000)
        nib.save(image, path)
    read_scan(path)
    stored, kept = voxels.nbytes / 2**20, 2 * voxels.nbytes / 2**20  # float32
    assert grown_mb(lambda: read_scan(path)) < stored + kept + 20


@pytest.mark.parametrize("suffix", [".nii.gz", ".png", ".dcm", ".mha", ""])
def test_no_permission(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"x" * 500)
    path.chmod(0)
    with as_nobody(tmp_path):
        assert "permission" in refusal(path)
    tmp_path.chmod(0)
    with as_nobody():
        assert "permission" in refusal(path)
    tmp_path.chmod(0o700)


@pytest.mark.goal(id="R5")
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("part", [0.01, 0.3, 0.9, 0.999])
def test_truncated_nifti(tmp_path: Path, suffix: str, part: float) -> None:
    path = save_nifti(tmp_path / f"a{suffix}", values(12, 12, 12))
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    refusal(path)


@pytest.mark.goal(id="R5")
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


@pytest.mark.goal(id="R5")
@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mhd"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("part", [0.1, 0.6, 0.99])
def test_truncated_itk_files(tmp_path: Path, suffix: str, packed: bool, part: float) -> None:
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(values(9, 9, 9)), str(path), packed)
    data = next(iter(tmp_path.glob("a.*raw")), path)
    data.write_bytes(data.read_bytes()[: int(part * data.stat().st_size)])
    refusal(path)


@pytest.mark.goal(id="R5")
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.9])
def test_truncated_pictures(tmp_path: Path, suffix: str, part: float) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    refusal(path)


@pytest.mark.goal(id="R5")
def test_a_flipped_bit_in_the_last_row_of_a_png_is_refused(tmp_path: Path) -> None:
    """Pillow (12) shows wrong pixels there without a word."""
    path = tmp_path / "a.png"
    Image.fromarray(values(40, 40).astype(np.uint8)).save(path)
    data = bytearray(path.read_bytes())
    data[-25] ^= 1  # before the 4 bytes of zlib's checksum, the chunk's checksum, and the last chunk of 12 bytes
    path.write_bytes(data)
    assert "the picture is damaged" in refusal(path)


@pytest.mark.goal(id="R9")
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


@pytest.mark.goal(id="R9")
def test_true_colour_dicom_is_refused(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 255, (4, 6, 3), np.uint8), isVector=True)
    sitk.WriteImage(image, str(tmp_path / "rgb.dcm"))
    assert "3 channels" in refusal(tmp_path / "rgb.dcm", channels=1)
    assert read_scan(tmp_path / "rgb.dcm", channels=3).array.shape == (3, 4, 6)


@pytest.mark.goal(id="R8")
def test_values_that_cannot_be_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    array = values(4, 4, 4)
    array[0, 0, :2] = np.nan
    array[1, 1, 1] = np.inf
    path = save_nifti(tmp_path / "nan.nii.gz", array)
    line = refusal(path)
    assert "3 of its voxels" in line
    assert "nonfinite" in line
    assert read_scan(path, nonfinite=-1.0).array[0, 1, 1, 1] == -1
    assert "3 NaN or infinite voxels" in caplog.text
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


@pytest.mark.goal(id="R10")
def test_sheared_affine_is_read_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    affine = np.eye(4)
    affine[0, 1] = 0.3
    image = nib.Nifti1Image(values(4, 4, 4), None)
    image.set_sform(affine, 1)
    nib.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(read_scan(tmp_path / "a.nii").affine, affine, rtol=1e-6)
    assert "sheared" in caplog.text


def _with_forms(path: Path, sform: tuple | None, qform: tuple | None, spacing: float = 1.0) -> Path:
    """A volume with these diagonals (and code 1), or code 0 for None."""
    image = nib.Nifti1Image(values(4, 4, 4), None)
    for name, diagonal in (("sform", sform), ("qform", qform)):
        getattr(image, f"set_{name}")(None if diagonal is None else np.diag([*diagonal, 1.0]), diagonal is not None)
    image.header["pixdim"][1:4] = spacing
    nib.save(image, path)
    return path


@pytest.mark.goal(id="R10")
@pytest.mark.parametrize(
    ("sform", "qform", "spacing", "warning"),
    [
        ((1, 1, 1), (1, 1, 1), 1.0, None),
        ((1, 1, 1), None, 1.0, None),
        (None, (-1, 1, 1), 1.0, None),
        ((-1, -1, 1), (1, 1, 1), 1.0, None),  # a rotation: the sform may lead to another space
        ((-1, 1, 1), (1, 1, 1), 1.0, "its sform and qform disagree about left and right; the sform is used"),
        (None, None, 1.0, "it has no orientation (the codes of sform and qform are 0); left and right are a guess"),
        ((1, 1, 1), (1, 1, 1), 2.0, "its voxel spacing (pixdim) is not that of its sform; the sform is used"),
    ],
)
def test_a_doubtful_orientation_is_read_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, sform, qform, spacing, warning
) -> None:
    path = _with_forms(tmp_path / f"{sform}{qform}{spacing}.nii", sform, qform, spacing)
    read_scan(path)
    assert [record.message for record in caplog.records] == ([] if warning is None else [f"{path.name}: {warning}"])
    if warning is None:
        read_scan(path, doubtful="refuse")
    else:
        assert warning.partition(";")[0] in refusal(path, doubtful="refuse")


@pytest.mark.goal(id="R15")
def test_header_bomb_is_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    path = _write_header(tmp_path / "bomb.nii", dim=[3, 30000, 30000, 3000, 1, 1, 1, 1])
    packed = tmp_path / "bomb.nii.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    (tmp_path / "bomb.mha").write_bytes(
        b"ObjectType = Image\nNDims = 3\nDimSize = 30000 30000 3000\nElementType = MET_FLOAT\n"
        b"ElementDataFile = LOCAL\n0"
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for bomb in (path, packed, tmp_path / "bomb.mha"):
        assert "GiB" in refusal(bomb)
        with pytest.raises(ScanError):
            read_shape(bomb)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


@pytest.mark.goal(id="R15")
def test_gzip_bomb_behind_the_voxels(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "a.nii")
    with gzip.open(tmp_path / "b.nii.gz", "wb", compresslevel=1) as stream:
        stream.write(path.read_bytes())
        for _ in range(80):
            stream.write(bytes(1 << 20))
    assert "far more data" in refusal(tmp_path / "b.nii.gz")


@functools.cache
def packed_zeros(wbits: int) -> bytes:
    """300 MiB of zeros."""
    pack = zlib.compressobj(wbits=wbits)
    return b"".join([*(pack.compress(bytes(1 << 20)) for _ in range(300)), pack.flush()])


@pytest.mark.goal(id="R15")
@pytest.mark.parametrize("name", ["b.mha", "b.mhd", "b.nrrd", "detached.nrrd"])
def test_compression_bombs_take_no_memory(tmp_path: Path, name: str) -> None:
    """Defect 19 of the reliability goals: 1 MB of zeros' zeros took 2 GB, and the MHA was accepted."""
    nrrd = name.endswith(".nrrd")
    body = packed_zeros(31 if nrrd else 15)
    header = (
        _NRRD.replace("raw", "gzip") if nrrd else _MHD + f"CompressedData = True\nCompressedDataSize = {len(body)}\n"
    )
    ends = {"b.mha": "ElementDataFile = LOCAL\n", "b.mhd": "ElementDataFile = b.zraw\n", "b.nrrd": "\n"}
    (tmp_path / name).write_bytes((header + ends.get(name, "data file: b.zraw\n\n")).encode())
    with open(tmp_path / (name if name in ("b.mha", "b.nrrd") else "b.zraw"), "ab") as stream:
        stream.write(body)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "far more data" in refusal(tmp_path / name)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


@pytest.mark.goal(id="R15")
def test_lengths_that_lie_in_dicom_take_no_memory(tmp_path: Path) -> None:
    """Each byte of the file's beginning in turn: GDCM alone takes up to 23 GB for some of these files."""
    data = (save_series(tmp_path / "ct", 1) / "001.dcm").read_bytes()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for at in range(128, 700):
        (tmp_path / "a.dcm").write_bytes(data[:at] + bytes([0x5A if at % 2 else 0xFE]) + data[at + 1 :])
        try:
            read_scan(tmp_path / "a.dcm")
        except ScanError:
            continue
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


@pytest.mark.goal(id="R30")
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


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("a.mhd", _MHD + "ElementDataFile = ../secret.raw\n"),
        ("a.mhd", _MHD + "ElementDataFile = {folder}/secret.raw\n"),
        ("a.mha", _MHD + "ElementDataFile = ../secret.raw\n"),
        ("a.mhd", _MHD + "\nElementDataFile = ../secret.raw\n"),
        ("a.mhd", _MHD + "Comment = x\n" * 1200 + "ElementDataFile = ../secret.raw\n"),
        ("a.mhd", _MHD.replace("4 4 4", "4 4 1") + "ElementDataFile = LIST\n../secret.raw\n"),
        ("a.nrrd", _NRRD + "data file: ../secret.raw\n\n"),
        ("a.nrrd", _NRRD + "Datafile: {folder}/secret.raw\n"),
        ("a.nrrd", _NRRD + "# x\n" * 1200 + "data file: ../secret.raw\n\n"),
        ("a.nrrd", _NRRD + "data file: LIST\n../secret.raw\n"),
        ("a.nrrd", _NRRD + "#" * 2**20 + "\ndata file: ../secret.raw\n\n"),
    ],
)
def test_a_header_cannot_name_a_file_of_another_folder(tmp_path: Path, name: str, header: str) -> None:
    """Else whoever may upload a scan could read any file of the machine."""
    (tmp_path / "secret.raw").write_bytes(bytes(range(64)))
    (tmp_path / "uploads").mkdir()
    path = tmp_path / "uploads" / name
    path.write_text(header.replace("{folder}", str(tmp_path)))
    assert "another folder" in refusal(path) or "does not end" in refusal(path)
    with pytest.raises(ScanError):
        read_shape(path)


@pytest.mark.parametrize(
    ("name", "header"),
    [("a.mhd", _MHD + "ElementDataFile = voxels.raw\n"), ("a.nrrd", _NRRD + "data file: voxels.raw\n\n")],
)
def test_a_header_can_name_a_file_beside_it(tmp_path: Path, name: str, header: str) -> None:
    (tmp_path / "voxels.raw").write_bytes(bytes(range(64)))
    (tmp_path / name).write_text(header)
    assert read_scan(tmp_path / name).array.max() == 63
