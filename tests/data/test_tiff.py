"""TIFF, BMP and FreeSurfer's MGH: values as other readers have them, and what is refused."""

import gzip

import nibabel as nib
import numpy as np
import pytest
import tifffile
from nibabel.freesurfer import MGHImage
from PIL import Image
from scan_files import refusal, values

from monai_diffae.data.scans import read_header, read_scan
from monai_diffae.transforms.writing import write_native

AFFINE = np.diag([-1, 2, 1.5, 1])[[1, 0, 2, 3]]


def write(path, dtype="uint8", *shape, **options):
    """Write noise, below 0 for types with a sign: ``[H, W]``, ``[H, W, C]``, or pages of these."""
    array = (values(*shape or (20, 30)) - (0 if dtype[0] == "u" else 100)).astype(dtype)
    tifffile.imwrite(path, array, photometric=options.pop("photometric", "minisblack"), **options)
    return array


def check(path, expected):
    """Compare values and header of a file with what another reader says."""
    scan = read_scan(path)
    array = scan.array.T if scan.spatial_dims == 3 else np.moveaxis(scan.array, 0, -1)
    np.testing.assert_array_equal(array.squeeze(), expected)
    assert scan.array.shape[1:] == read_header(path).shape
    return scan


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "float32"])
@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 3), (5, 20, 30), (5, 20, 30, 3)], ids=str)
def test_tiff_of_all_types_has_its_values(tmp_path, dtype, shape):
    path = tmp_path / "a.tif"
    for order in "<>":
        write(path, dtype, *shape, photometric="rgb" if shape[-1] == 3 else "minisblack", byteorder=order)
        scan = check(path, tifffile.imread(path))
    assert (scan.suffix == ".png") == (dtype == "uint8" and scan.spatial_dims == 2)


def test_compressed_and_tiled_tiff_palettes_and_opaque_alpha_are_read(tmp_path):
    path, picture = tmp_path / "a.tiff", Image.linear_gradient("L")
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
        picture.convert("RGBA").save(path, compression=compression)
        check(path, picture)
    check(path, write(path, "uint16", 50, 70, tile=(16, 16)))
    colours = np.arange(768, dtype=np.uint16).reshape(3, 256) * 85
    check(path, colours.T[write(path, photometric="palette", colormap=colours)] >> 8)


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"tile": (16, 16)}], ids=str)
def test_values_are_inverted_if_the_lowest_is_white(tmp_path, options):
    path = tmp_path / "a.tif"
    for dtype in ("uint8", "uint16"):
        check(path, ~write(path, dtype, 5, 20, 30, photometric="miniswhite", **options))


def test_pages_are_axial_slices_with_a_warning(tmp_path, caplog):
    path = tmp_path / "a.tif"
    array = write(path, "uint16", 5, 20, 30, imagej=True, metadata={"axes": "ZYX", "spacing": 3.0})
    scan = check(path, array)
    assert (scan.spacing_mm, nib.aff2axcodes(scan.affine)) == ((1, 1, 1), ("L", "P", "S"))
    assert "its 5 pages are read as axial slices" in caplog.text
    refusal(path, doubtful="refuse")


@pytest.mark.parametrize(
    ("dtype", "shape", "options", "wrong"),
    [
        ("float32", (20, 30), {"photometric": "miniswhite"}, "MinIsWhite"),
        ("uint8", (20, 30, 2), {"planarconfig": "contig"}, "2 channels"),
        ("uint16", (20, 30, 4), {"photometric": "rgb", "extrasamples": [2]}, "4 channels"),
        ("uint16", (3, 20, 30), {"photometric": "rgb", "planarconfig": "separate"}, "planes"),
        ("uint16", (5, 2, 20, 30), {"imagej": True, "metadata": {"axes": "ZCYX"}}, "channels or times"),
        ("uint8", (5, 2, 20, 30), {"ome": True, "metadata": {"axes": "TZYX"}}, "channels or times"),
        ("uint8", (20, 30), {"extratags": [(274, "H", 1, 6, False)]}, "Orientation"),
        ("float16", (20, 30, 3), {"photometric": "rgb"}, "not supported"),
    ],
)
def test_tiff_that_would_lose_values_is_refused(tmp_path, dtype, shape, options, wrong):
    write(tmp_path / "a.tif", dtype, *shape, **options)
    assert wrong in refusal(tmp_path / "a.tif")


@pytest.mark.parametrize("other", [("uint8", 10, 15), ("uint16",)])
def test_pages_that_differ_are_refused(tmp_path, other):
    write(tmp_path / "a.tif")
    write(tmp_path / "a.tif", *other, append=True)
    assert "its pages differ" in refusal(tmp_path / "a.tif")


def test_bmp_has_its_pixels(tmp_path):
    for mode, read_as in {"1": "L", "L": "L", "P": "RGB"}.items():
        picture = Image.fromarray(values(20, 31, 3).astype(np.uint8)).convert(mode)
        picture.save(tmp_path / "a.bmp")
        assert check(tmp_path / "a.bmp", picture.convert(read_as)).suffix == ".png"


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_mgh_agrees_with_nibabel_and_results_keep_its_type(tmp_path, dtype):
    for path in (tmp_path / "a.mgz", tmp_path / "a.mgh"):
        nib.save(MGHImage(values(5, 6, 7).astype(dtype), AFFINE), path)
        scan = read_scan(path)
        assert (read_header(path).shape, scan.doubts) == ((5, 6, 7), ())
        for image in (nib.load(path), nib.load(write_native(tmp_path / "b.nii.gz", scan.array, scan))):
            np.testing.assert_array_equal(scan.array[0], image.get_fdata())
            np.testing.assert_allclose(scan.affine, image.affine, atol=1e-4)
            assert image.get_data_dtype().newbyteorder("=") == dtype


def test_mgh_without_orientation_with_frames_or_of_a_surface(tmp_path):
    path = tmp_path / "a.mgz"
    nib.save(MGHImage(values(5, 6, 7), AFFINE), path)
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[28:30] = b"\0\0"
    path.write_bytes(gzip.compress(raw))
    assert [doubt.kind for doubt in read_scan(path).doubts] == ["orientation"]
    nib.save(MGHImage(values(5, 6, 7, 2), AFFINE), path)
    assert read_scan(path).array.shape == (2, 5, 6, 7)
    nib.save(MGHImage(values(163842, 1, 1), AFFINE), path)
    assert "not a FreeSurfer volume" in refusal(path)
