"""Values, geometry and colours of scans in each format, and slices of volumes."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from scan_files import refusal, save_nifti, values

from monai_diffae.data.formats.axes import slice_volume
from monai_diffae.data.scans import ScanNeeds, read_scan, read_shape, scan_of_array
from monai_diffae.errors import ConfigError, ScanError
from monai_diffae.transforms import ReadScand

ORIENTATIONS = ["".join(o) for p in itertools.permutations(["LR", "PA", "IS"]) for o in itertools.product(*p)]


@pytest.fixture
def colours():
    """A picture [8, 10, 3] in which the channels differ."""
    return np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8)


def test_nifti_2_big_endian_slope_units_and_trailing_axes(tmp_path):
    array = values(5, 6, 7).astype(np.int16)
    nib.save(nib.Nifti2Image(array, np.eye(4)), tmp_path / "two.nii.gz")
    np.testing.assert_array_equal(read_scan(tmp_path / "two.nii.gz").array[0], array)
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(np.dtype(">i2"))
    header.set_slope_inter(0.5, 3)
    header.set_xyzt_units("micron")
    nib.save(nib.Nifti1Image(array.astype(">i2"), np.diag([1000.0, 1000, 2000, 1]), header), tmp_path / "big.nii")
    assert (tmp_path / "big.nii").read_bytes()[:4] == (348).to_bytes(4, "big")
    scan = read_scan(tmp_path / "big.nii")
    np.testing.assert_allclose(scan.array[0], nib.load(tmp_path / "big.nii").get_fdata(), rtol=1e-4)
    np.testing.assert_allclose(scan.spacing_mm, (1, 1, 2), rtol=1e-5)
    assert read_scan(save_nifti(tmp_path / "a.nii", values(4, 5, 6, 1))).array.shape == (1, 4, 5, 6)


@pytest.mark.goal(id="R9")
@pytest.mark.parametrize(
    ("slope", "inter", "expected"), [(0, 7, 1), (np.nan, 7, 1), (2, 3, 5), (-np.inf, 0, None), (2, np.nan, None)]
)
def test_a_nifti_scaling_that_is_not_finite_is_refused(tmp_path, slope, inter, expected):
    """The standard says that a slope of 0 means no scaling, and common tools say the same of NaN."""
    path = save_nifti(tmp_path / "a.nii", values(4, 5, 6).astype(np.int16))
    stored = read_scan(path).array
    raw = bytearray(path.read_bytes())
    raw[112:120] = np.array([slope, inter], "<f4").tobytes()
    path.write_bytes(raw)
    if expected is None:
        assert f"its scaling is not finite (scl_slope {slope:g}, scl_inter {inter:g})" in refusal(path)
        with pytest.raises(ScanError, match="its scaling is not finite"):
            read_shape(path)
    else:
        np.testing.assert_array_equal(read_scan(path).array, stored if expected == 1 else stored * 2 + 3)


@pytest.mark.parametrize("packed", [False, True])
def test_itk_formats_agree_with_nifti(tmp_path, packed):
    image = sitk.GetImageFromArray(values(7, 6, 5))
    image.SetSpacing((1, 2, 3))
    image.SetOrigin((4, 5, 6))
    image.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, 1))
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    expected = read_scan(tmp_path / "a.nii.gz")
    for suffix in (".nrrd", ".mha", ".mhd"):
        sitk.WriteImage(image, str(tmp_path / f"a{suffix}"), packed)
        scan = read_scan(tmp_path / f"a{suffix}")
        np.testing.assert_array_equal(scan.array, expected.array)
        np.testing.assert_allclose(scan.affine, expected.affine, atol=1e-5)
        assert read_shape(tmp_path / f"a{suffix}") == read_shape(tmp_path / "a.nii.gz") == (6, 5, 7)


@pytest.mark.parametrize("code", ORIENTATIONS[::5])
def test_all_orientations_give_the_same_slices(code, tmp_path):
    truth = nib.Nifti1Image(values(4, 5, 6), np.diag([1.0, 2, 3, 1]))
    turn = nib.orientations.ornt_transform(nib.io_orientation(truth.affine), nib.orientations.axcodes2ornt(code))
    nib.save(truth.as_reoriented(turn), tmp_path / "a.nii")
    scan, array = read_scan(tmp_path / "a.nii"), truth.get_fdata()
    assert read_shape(tmp_path / "a.nii") == (4, 5, 6)
    for axis, index, plane in (
        ("axial", 2, array[::-1, ::-1, 2].T),
        ("coronal", 3, array[::-1, 3, ::-1].T),
        ("sagittal", 1, array[1, ::-1, ::-1].T),
    ):
        part = slice_volume(scan, axis, index)
        np.testing.assert_array_equal(part.array[0], plane)
        # row 1, column 2 of the slice lies where its voxel lies in the volume
        place = np.argwhere(array == plane[1, 2])[0]
        np.testing.assert_allclose(part.affine @ [1, 2, 0, 1], truth.affine @ [*place, 1], atol=1e-5)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "1", "P", "I;16"])
def test_grey_pictures_have_one_channel(tmp_path, mode):
    if mode == "I;16":
        array = np.linspace(0, 65535, 12, dtype=np.uint16).reshape(3, 4)
        Image.fromarray(array).save(tmp_path / "a.png")
    else:
        array = np.array([[0, 255, 0, 255], [255, 0, 0, 255], [0, 0, 255, 255]], np.uint8)
        Image.fromarray(array).convert(mode).save(tmp_path / "a.png")
    scan = read_scan(tmp_path / "a.png", ScanNeeds(spatial_dims=2, channels=1))
    np.testing.assert_array_equal(scan.array[0], array)
    np.testing.assert_array_equal(scan.affine, np.eye(4))
    assert read_shape(tmp_path / "a.png") == (3, 4)


def test_pictures_are_turned_as_exif_says(tmp_path, colours):
    grey, exif = Image.fromarray(colours[..., 0]), Image.Exif()
    for orientation, shape in ((6, (10, 8)), (9, (8, 10))):  # 9 is no orientation
        exif[0x0112] = orientation
        grey.save(tmp_path / "a.jpg", exif=exif, quality=100)
        array = read_scan(tmp_path / "a.jpg").array
        assert array.shape == (1, *read_shape(tmp_path / "a.jpg")) == (1, *shape)
        expected = np.rot90(colours[..., 0], -1) if orientation == 6 else colours[..., 0]
        np.testing.assert_allclose(array[0], expected, atol=4)


@pytest.mark.goal(id="R9")
def test_colour_pictures_of_16_bits_are_refused(tmp_path):
    """PIL reads them with 8 bits: of the 4096 levels of a radiograph with 12 bits, 16 would be left."""
    path = tmp_path / "deep.png"
    for components in (2, 3):
        deep = np.repeat(np.arange(20, dtype=np.uint16).reshape(4, 5, 1) * 200, components, axis=2)
        sitk.WriteImage(sitk.GetImageFromArray(deep, isVector=True), str(path))
        assert "a picture with colours or an alpha channel has 16 bits; save it as a grey picture" in refusal(path)
        with pytest.raises(ScanError, match="has 16 bits"):
            read_shape(path)


def test_colours_are_refused_or_grey_or_three_channels(tmp_path, colours):
    path, plain = tmp_path / "a.png", tmp_path / "b.png"
    Image.fromarray(colours).save(path)
    Image.fromarray(colours[..., 0]).save(plain)
    assert refusal(path, channels=1) == (
        "a.png: it has 3 channels (colour), expected 1; set colour=grey, train on rgb, or convert it"
    )
    grey = read_scan(path, ScanNeeds(channels=1, colour="grey")).array
    assert grey.shape == (1, 8, 10)
    np.testing.assert_allclose(grey[0], np.asarray(Image.fromarray(colours).convert("L")), atol=1)  # the luminance
    read = ReadScand("image", 2, channels=3, colour="rgb")
    np.testing.assert_array_equal(read({"image": str(path)})["image"].numpy(), colours.transpose(2, 0, 1))
    np.testing.assert_array_equal(read({"image": str(plain)})["image"].numpy(), np.stack([colours[..., 0]] * 3))
    with pytest.raises(ConfigError, match="colour: rgb has 3 channels, but in_channels is 1; choose another"):
        ReadScand("image", 2, channels=1, colour="rgb")


@pytest.mark.parametrize("colour", ["refuse", "grey"])
def test_channels_that_are_equal_but_for_noise_are_grey(colours, colour):
    grey = np.stack([colours[..., 0].astype(float)] * 3)
    grey[1] += 2
    np.testing.assert_array_equal(scan_of_array(grey, needs=ScanNeeds(channels=1, colour=colour)).array, grey[:1])
