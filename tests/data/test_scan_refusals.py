"""Scans that cannot be used are refused in one line; doubtful ones are read with a warning."""

import gzip
import io
import re
import zlib

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from dicom_files import make_plane
from PIL import Image
from scan_files import grown_mb, refusal, save_nifti, values

from monai_diffae.data.scans import ScanNeeds, read_geometry, read_scan, read_shape, scan_of_array, write_scan
from monai_diffae.errors import ScanError

_MHD = "ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementSpacing = 1 1 1\nElementType = MET_UCHAR\n"
_NRRD = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 4 4 4\nencoding: raw\n"
VOLUME = np.arange(60.0).reshape(1, 3, 4, 5)
SIGNAL = values(6, 7, 8).astype(np.float64) / values(6, 7, 8).max()  # 0..1, the brightest voxel 1


def _write_header(path, **fields):
    save_nifti(path)
    image = nib.Nifti1Header.from_fileobj(io.BytesIO(path.read_bytes()), check=False)
    for name, value in fields.items():
        image[name] = value
    path.write_bytes(image.binaryblock + path.read_bytes()[348:])
    return path


def _save(path, array):
    if path.suffix in (".nrrd", ".mha", ".mhd"):
        sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    else:
        nib.save(nib.Nifti1Image(array, np.eye(4), dtype=array.dtype), path)
    return path


def test_missing_empty_and_foreign_files(tmp_path):
    assert refusal(tmp_path / "no.nii.gz").startswith("no.nii.gz: there is no such file")
    for suffix in (".nii", ".nii.gz", ".png", ".dcm", ".mha", ".nrrd", ".jpg", ".tif", ".bmp", ".mgz", ".xyz"):
        (tmp_path / f"e{suffix}").write_bytes(b"")
        assert "empty" in refusal(tmp_path / f"e{suffix}")
        (tmp_path / f"{'x' * 200}{suffix}").write_bytes(b"garbage " * 100)
        refusal(tmp_path / f"{'x' * 200}{suffix}")
    (tmp_path / "page.nii.gz").write_bytes(b"<!DOCTYPE html><html>" + b" " * 500)
    assert "web page" in refusal(tmp_path / "page.nii.gz")
    (tmp_path / "lfs.nii.gz").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "git-lfs" in refusal(tmp_path / "lfs.nii.gz")


@pytest.mark.goal(id="R5")
@pytest.mark.parametrize("name", ["a.mhd", "a.jpg"])
def test_truncated_files(tmp_path, name):
    """tests/robustness/test_damaged_files.py cuts those of the other formats."""
    sitk.WriteImage(sitk.GetImageFromArray(values(64, 64).astype(np.uint8)), str(tmp_path / name))
    data = next(tmp_path.glob("a.raw"), tmp_path / name)
    path, content = tmp_path / name, data.read_bytes()
    for part in (0.02, 0.5, 0.9, 0.99):
        data.write_bytes(content[: int(part * len(content))])
        refusal(path)


@pytest.mark.goal(id="R5")
@pytest.mark.parametrize("name", ["a.mha", "a.mhd"])
def test_compressed_data_that_the_header_calls_shorter_are_refused(tmp_path, name):
    """ITK would read so many bytes only, and leave the other voxels as they are in memory."""
    sitk.WriteImage(sitk.GetImageFromArray(values(9, 9, 9)), str(tmp_path / name), True)
    header = (tmp_path / name).read_bytes()
    field = re.search(rb"CompressedDataSize = (\d+)\n", header)
    others = [b"CompressedDataSize = %d\n" % size for size in (int(field[1]) - 500, 10)]
    for other in [*others, b""] if name == "a.mha" else others:  # without it, ITK takes the size of the other file
        (tmp_path / name).write_bytes(header.replace(field[0], other, 1))
        assert "its CompressedDataSize is not that of its data" in refusal(tmp_path / name)


@pytest.mark.goal(id="R5")
def test_a_flipped_bit_in_the_last_row_of_a_png_is_refused(tmp_path):
    # Pillow (12) silently shows wrong pixels in the last row of a PNG
    Image.fromarray(values(40, 40).astype(np.uint8)).save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[-25] ^= 1  # before the 4 bytes of zlib's checksum, the chunk's checksum, and the last chunk of 12 bytes
    (tmp_path / "a.png").write_bytes(content)
    assert "the picture is damaged" in refusal(tmp_path / "a.png")


def _bomb(path):
    """A small file whose header declares about 400 million voxels."""
    if path.suffix == ".gz":
        plain = _write_header(path.with_suffix(""), dim=[3, 740, 740, 740, 1, 1, 1, 1])
        path.write_bytes(gzip.compress(plain.read_bytes()))
    elif path.suffix == ".dcm":
        make_plane((0.0, 0.0, 0.0), Rows=20000, Columns=20000).save_as(path)
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
def test_a_header_that_asks_for_far_more_than_its_file_holds_is_refused_first(tmp_path):
    for name in (
        "a.nii.gz", "a.jpg", "raw.nrrd", "packed.nrrd", "text.nrrd", "packed.mha", "parts.mhd", "a.dcm",
    ):  # fmt: skip
        path = _bomb(tmp_path / name)
        assert grown_mb(lambda path=path: refusal(path)) < 20, name
    huge = _write_header(tmp_path / "huge.nii", dim=[3, 30000, 30000, 3000, 1, 1, 1, 1])
    lines = []
    assert grown_mb(lambda: lines.append(refusal(huge))) < 20
    assert "GiB" in lines[0]
    with pytest.raises(ScanError):
        read_shape(huge)


@pytest.mark.goal(id="R15")
def test_data_that_unpack_to_far_more_than_the_voxels_take_no_memory(tmp_path):
    bodies = {}
    for name, wbits in (("b.mha", 15), ("b.nrrd", 31)):
        pack = zlib.compressobj(wbits=wbits)
        bodies[name] = b"".join([*(pack.compress(bytes(1 << 20)) for _ in range(100)), pack.flush()])
    mhd = _MHD + f"CompressedData = True\nCompressedDataSize = {len(bodies['b.mha'])}\n"
    nrrd = _NRRD.replace("raw", "gzip")
    (tmp_path / "b.mha").write_bytes(f"{mhd}ElementDataFile = LOCAL\n".encode() + bodies["b.mha"])
    (tmp_path / "b.mhd").write_text(f"{mhd}ElementDataFile = b.zraw\n")
    (tmp_path / "b.zraw").write_bytes(bodies["b.mha"])
    (tmp_path / "b.nrrd").write_bytes(f"{nrrd}\n".encode() + bodies["b.nrrd"])
    (tmp_path / "detached.nrrd").write_text(f"{nrrd}data file: b.gz\n\n")
    (tmp_path / "b.gz").write_bytes(bodies["b.nrrd"])
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(save_nifti(tmp_path / "a.nii").read_bytes()) + bodies["b.nrrd"])
    for name in ("b.mha", "b.mhd", "b.nrrd", "detached.nrrd", "b.nii.gz"):
        lines = []
        assert grown_mb(lambda name=name, lines=lines: lines.append(refusal(tmp_path / name))) < 40, name
        assert "far more data" in lines[0]


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("a.mhd", _MHD + "ElementDataFile = ../secret.raw\n"),
        ("a.mhd", _MHD + "\nElementDataFile = {folder}/secret.raw\n"),
        ("a.mha", _MHD + "Comment = x\n" * 1200 + "ElementDataFile = ../secret.raw\n"),
        ("a.nrrd", _NRRD + "Datafile: {folder}/secret.raw\n"),
        ("a.nrrd", _NRRD + "# x\n" * 1200 + "data file: ../secret.raw\n\n"),
    ],
)
def test_a_header_cannot_name_a_file_of_another_folder(tmp_path, name, header):
    """Else whoever may upload a scan could read any file of the machine."""
    (tmp_path / "secret.raw").write_bytes(bytes(range(64)))
    (tmp_path / "uploads").mkdir()
    path = tmp_path / "uploads" / name
    path.write_text(header.replace("{folder}", str(tmp_path)))
    assert "another folder" in refusal(path)
    with pytest.raises(ScanError):
        read_shape(path)


def test_a_header_can_name_a_file_beside_it(tmp_path):
    for name, header in (("a.mhd", f"{_MHD}ElementDataFile ="), ("a.nrrd", f"{_NRRD}data file:")):
        for voxels in ("voxels.raw", "Listed 1.raw"):
            (tmp_path / voxels).write_bytes(bytes(range(64)))
            (tmp_path / name).write_text(f"{header} {voxels}\n\n")
            assert read_scan(tmp_path / name).array.max() == 63
        for files in ("LIST\n../voxels.raw", "part%d.raw 1 2 1", "part%01i.raw 1 2 1"):
            (tmp_path / name).write_text(f"{header} {files}\n\n")
            assert "several files" in refusal(tmp_path / name)
    (tmp_path / "a.mhd").write_text(f"{_MHD}ElementDataFile = other.raw\n")
    assert "voxels is missing" in refusal(tmp_path / "a.mhd")


@pytest.mark.goal(id="R9")
def test_wrong_dimensions_and_channels(tmp_path):
    assert "3 channels, expected 1" in refusal(save_nifti(tmp_path / "four.nii.gz", values(4, 4, 4, 3)), channels=1)
    assert "#channel=0" in refusal(save_nifti(tmp_path / "times.nii.gz", values(4, 4, 4, 20)))
    sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(values(4, 4, 4))] * 2), str(tmp_path / "four.nrrd"))
    assert "4D" in refusal(tmp_path / "four.nrrd")
    volume = save_nifti(tmp_path / "three.nii.gz")
    assert "expected a 2D image" in refusal(volume, spatial_dims=2)
    assert "1 channel, expected 2" in refusal(volume, channels=2)
    Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).save(tmp_path / "two.png")
    assert "expected a 3D volume" in refusal(tmp_path / "two.png", spatial_dims=3)
    flat = save_nifti(tmp_path / "flat.nii.gz", values(6, 7, 1))
    assert read_scan(flat, ScanNeeds(spatial_dims=2)).array.shape == (1, 7, 6) == (1, *read_shape(flat))
    assert "2D" in refusal(flat, spatial_dims=3)
    colours = np.random.default_rng(0).integers(0, 255, (4, 6, 3), np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(colours, isVector=True), str(tmp_path / "rgb.dcm"))
    assert "3 channels" in refusal(tmp_path / "rgb.dcm", channels=1)
    assert read_scan(tmp_path / "rgb.dcm", ScanNeeds(channels=3)).array.shape == (3, 4, 6)


@pytest.mark.goal(id="R8")
def test_values_that_cannot_be_used(tmp_path, caplog):
    array = values(4, 4, 4)
    array[0, 0, :2] = np.nan
    array[1, 1, 1] = np.inf
    path = save_nifti(tmp_path / "nan.nii.gz", array)
    line = refusal(path)
    assert "voxels that are NaN" in line
    assert "nonfinite" in line
    assert read_scan(path, ScanNeeds(nonfinite=-1.0)).array[0, 1, 1, 1] == -1
    assert "3 voxels, NaN or infinite" in caplog.text
    assert "same value" in refusal(save_nifti(tmp_path / "one.nii.gz", np.ones((4, 4, 4), np.float32)))
    Image.new("L", (4, 4), 7).save(tmp_path / "one.png")
    assert "same value (7)" in refusal(tmp_path / "one.png")


def test_wrong_geometry_and_types(tmp_path):
    for dims in ("0", "93", "999999999", "-3", "3e9"):  # ITK would crash: MetaIO has room for 10
        (tmp_path / "d.mha").write_text(_MHD.replace("NDims = 3", f"NDims = {dims}") + "ElementDataFile = LOCAL\n")
        assert "dimensions (NDims)" in refusal(tmp_path / "d.mha")
    (tmp_path / "n.mha").write_text(f"{_MHD}Name = {'n' * 300}\nElementDataFile = LOCAL\n")
    assert "line that is too long" in refusal(tmp_path / "n.mha")
    sitk.WriteImage(sitk.GetImageFromArray(values(7, 8, 9)), str(tmp_path / "e.mha"), True)
    content = (tmp_path / "e.mha").read_bytes()
    end = content.index(b"LOCAL") + len("LOCAL")
    (tmp_path / "e.mha").write_bytes(content[:end] + b"xyzuvwt" + content[end + 7 :])  # MetaIO would crash
    assert "voxels is missing" in refusal(tmp_path / "e.mha")
    for line in ("a" * 1000, f"kinds: {'x' * 1000}", "\x01" * 64 * 99):  # ITK would crash: the last has no blank line
        (tmp_path / "l.nrrd").write_text(_NRRD + line)
        assert "line that is too long" in refusal(tmp_path / "l.nrrd")
    (tmp_path / "l.nrrd").write_bytes(f"{_NRRD}#{'c' * 1000}\na:={'v' * 1000}\n\n".encode() + bytes(range(64)))
    assert read_scan(tmp_path / "l.nrrd").array.max() == 63  # 3D Slicer writes long values
    for spacing in (0.0, -1.0, np.nan, np.inf):
        path = _write_header(tmp_path / "s.nii", pixdim=[1, 1, spacing, 1, 0, 0, 0, 0])
        assert f"spacing is 1 x {spacing:g} x 1 mm" in refusal(path)
        header = _MHD.replace("1 1 1", f"1 {spacing} 1").encode()
        (tmp_path / "s.mha").write_bytes(header + b"ElementDataFile = LOCAL\n" + bytes(range(64)))
        assert "spacing" in refusal(tmp_path / "s.mha")
    assert "singular" in refusal(_write_header(tmp_path / "a.nii", srow_x=[1, 1, 0, 0], srow_y=[1, 1, 0, 0]))
    assert "spacing" in refusal(_write_header(tmp_path / "z.nii", srow_x=[0, 0, 0, 0]))


def _with_forms(path, sform, qform, spacing):
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
        (None, (-1, 1, 1), 1.0, None),
        ((-1, -1, 1), (1, 1, 1), 1.0, None),  # a rotation: the sform may lead to another space
        ((-1, 1, 1), (1, 1, 1), 1.0, "its sform and qform disagree about left and right; the sform is used"),
        (None, None, 1.0, "it has no orientation (the codes of sform and qform are 0); left and right are a guess"),
        ((1, 1, 1), (1, 1, 1), 2.0, "its voxel spacing (pixdim) is not that of its sform; the sform is used"),
    ],
)
def test_a_doubtful_orientation_is_read_with_a_warning(tmp_path, caplog, sform, qform, spacing, warning):
    path = _with_forms(tmp_path / f"{sform}{qform}{spacing}.nii", sform, qform, spacing)
    scan = read_scan(path)
    if sform or qform:
        np.testing.assert_array_equal(np.diag(scan.affine)[:3], sform or qform)
    assert [record.message for record in caplog.records] == ([] if warning is None else [f"{path.name}: {warning}"])
    if warning is None:
        read_scan(path, ScanNeeds(doubtful="refuse"))
    else:
        assert warning.partition(";")[0] in refusal(path, doubtful="refuse")


@pytest.mark.goal(id="R10")
def test_a_sheared_affine_is_kept_and_logged_once(tmp_path, caplog):
    affine = np.eye(4)
    affine[0, 1] = 0.3
    image = nib.Nifti1Image(values(4, 4, 4), None)
    image.set_sform(affine, 1)
    nib.save(image, tmp_path / "a.nii")
    for _ in range(2):
        read_geometry(tmp_path / "a.nii")
        np.testing.assert_allclose(read_scan(tmp_path / "a.nii").affine, affine, rtol=1e-6)
    assert caplog.messages == ["a.nii: its affine is sheared; distances are approximate"]


def test_values_that_float32_cannot_tell_apart_are_refused_or_logged_once(tmp_path, caplog):
    for name in ("a.nii.gz", "a.nrrd"):
        line = refusal(_save(tmp_path / name, 1e9 + 20 * SIGNAL))
        assert "about 1e+09, are too close together" in line
        assert "subtract" in line
    image = nib.Nifti1Image((255 * SIGNAL).astype(np.uint8), np.eye(4))
    image.header.set_slope_inter(0.01, 1e8)
    nib.save(image, tmp_path / "slope.nii")
    assert "too close together" in refusal(tmp_path / "slope.nii")
    path = _save(tmp_path / "few.nii", 1e9 + 6400 * SIGNAL)
    for _ in range(2):
        read_scan(path)
    (message,) = caplog.messages
    assert message.startswith("few.nii: its values, about 1e+09, are close together: only")
    assert " 85 steps" in message


@pytest.mark.parametrize(
    "array",
    [
        1e9 + 1e6 * SIGNAL,  # 15625 steps
        np.round(1e7 + 20 * SIGNAL),  # few levels, each kept
        (1e9 + 640 * SIGNAL).astype(np.float32),  # lost before
        np.where(SIGNAL == 1, 1e9, SIGNAL),  # one voxel far away: small values keep their digits
    ],
)
def test_values_that_float32_holds_cause_no_message(tmp_path, array, caplog):
    read_scan(_save(tmp_path / "a.nii", array))
    assert not caplog.records


def test_an_array_is_the_scan_that_its_file_is(tmp_path):
    affine = np.array([[0, -1.5, 0, 3], [2.0, 0, 0, -7], [0, 0, 4, 1], [0, 0, 0, 1]])
    for dtype in (bool, np.int16, np.float64):
        array = (VOLUME % 2 if dtype is bool else VOLUME).astype(dtype)
        scan = scan_of_array(array, affine, needs=ScanNeeds(spatial_dims=3, channels=1))
        expected = read_scan(write_scan(tmp_path / "a.nii", array, affine))
        np.testing.assert_array_equal(scan.array, expected.array)
        np.testing.assert_array_equal(scan.affine, expected.affine)
        assert scan.array.dtype == np.float32
        assert not np.shares_memory(scan.array, array)
    array[0, 0, 0, 0] = np.nan
    assert scan_of_array(array, needs=ScanNeeds(nonfinite=-1.0)).array.min() == -1


@pytest.mark.parametrize(
    ("array", "affine", "message"),
    [
        (VOLUME[0, 0], None, "image: it has 2 axes, expected .*; add or remove axes"),
        (np.full_like(VOLUME, np.inf), None, "image: it has voxels that are NaN or infinite"),
        (VOLUME, np.eye(3), "image: its affine is 3 x 3, expected 4 x 4"),
        (VOLUME[0], None, "image: it has 3 channels.*, expected 1"),
    ],
)
def test_arrays_that_are_refused(array, affine, message):
    with pytest.raises(ScanError, match=f"^{message}") as caught:
        scan_of_array(array, affine, needs=ScanNeeds(spatial_dims=None if array.ndim != 3 else 2, channels=1))
    assert "\n" not in str(caught.value)
