"""Images, differences, maps and masks from the grid of the model to the space of the scan."""

import itertools
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.bundle import ConfigParser
from monai.transforms import Compose, NormalizeIntensityd, Resized, ResizeWithPadOrCropd
from PIL import Image
from scan_files import OBLIQUE

from monai_diffae.data.formats.axes import slice_volume
from monai_diffae.data.scans import Scan, read_scan, write_scan
from monai_diffae.errors import ConfigError, ScanError
from monai_diffae.transforms import NativeSpace, ReadScand, SmoothForSpacingd, ToModelRanged, write_native
from monai_diffae.transforms.native import CaseSpace
from monai_diffae.transforms.preprocessing import ToRASd, ToSpacingd
from monai_diffae.transforms.writing import read_image, write_image

BUNDLE = Path(__file__).parents[2] / "bundles" / "diffae_3d" / "configs" / "train.json"


def shipped_2d(size=(64, 64), keys="image", axis="axial", **range_):
    """As in bundles/diffae_2d."""
    return Compose([
        ReadScand(keys, 2, axis=axis),
        ToModelRanged(keys, **range_),
        Resized(keys, max(size), size_mode="longest", mode="bilinear", anti_aliasing=True),
        ResizeWithPadOrCropd(keys, size, mode="constant", value=-1),
    ])  # fmt: skip


def smooth(*shape):
    """Waves of one period along each axis, of 100 to 900."""
    grids = np.meshgrid(*(np.linspace(0, 2 * np.pi, n) for n in shape), indexing="ij")
    waves = np.mean([np.cos(g + i) for i, g in enumerate(grids)], axis=0)
    return (500 + 400 * waves / np.abs(waves).max())[None].astype(np.float32)


@settings(max_examples=8, deadline=None)
@given(height=st.integers(30, 150), width=st.integers(30, 150))
def test_any_size_comes_back(tmp_path_factory, height, width):
    scan = smooth(height, width)
    path = write_scan(tmp_path_factory.mktemp("any") / "a.nii.gz", scan)
    native = NativeSpace(shipped_2d(method="minmax"), {"image": str(path)})
    back = native.back(native.image)
    assert native.image.shape == (1, 64, 64)
    assert (back.shape, back.dtype) == (scan.shape, np.float32)
    assert native.field.all()
    assert np.abs(back - scan).mean() < 16  # 2 % of the range
    # the model's range is that of the scan, whose ends are known without the transform
    for value, units in ((-1.0, scan.min()), (0.5, scan.min() + 0.75 * np.ptp(scan)), (1.0, scan.max())):
        np.testing.assert_allclose(native.back(torch.full((1, 64, 64), value)), units, rtol=1e-6)


def test_positions_stay(tmp_path):
    """A blob comes back where it was: no half-voxel shift, no axes exchanged."""
    y, x = np.mgrid[:97, :41]
    scan = np.exp(-((y - 70.3) ** 2 + (x - 12.6) ** 2) / 20)[None]
    path = write_scan(tmp_path / "a.nii.gz", scan)
    native = NativeSpace(shipped_2d(method="minmax"), {"image": str(path)})
    blob = np.where(scan[0] > 1e-3, native.back(native.image)[0], 0)  # MONAI's anti-aliasing greys the image's edges
    assert (blob * y).sum() / blob.sum() == pytest.approx((scan * y).sum() / scan.sum(), abs=0.05)
    assert (blob * x).sum() / blob.sum() == pytest.approx((scan * x).sum() / scan.sum(), abs=0.05)


@pytest.mark.parametrize("shape", [(90, 45), (45, 90)])
def test_what_was_cropped_is_empty(tmp_path, shape):
    scan = smooth(*shape)
    path = write_scan(tmp_path / "a.nii.gz", scan)
    native = NativeSpace(shipped_2d((32, 48), method="minmax"), {"image": str(path)})
    # the longest side becomes 48; rows are cropped to 32, columns padded to 48
    rows = int(np.round(shape[0] * 48 / max(shape)))
    covered = min(32 / rows, 1)
    assert native.field.mean() == pytest.approx(covered, abs=1.5 / shape[0])
    white = native.back(torch.ones(1, 32, 48))
    np.testing.assert_array_equal(white[:, ~native.field], scan.min())
    np.testing.assert_allclose(white[:, native.field], scan.max(), rtol=1e-6)  # the crop's edge is not darkened
    difference = native.back_difference(torch.ones(1, 32, 48))
    assert not difference[:, ~native.field].any()
    np.testing.assert_allclose(difference[:, native.field], np.ptp(scan) / 2, rtol=1e-5)


@settings(max_examples=8, deadline=None)
@given(height=st.integers(10, 300), width=st.integers(10, 300), seed=st.integers(0, 99))
def test_a_difference_of_0_leaves_the_scan_to_the_bit(height, width, seed):
    rng = np.random.default_rng(seed)
    scan = rng.normal(100, 1000, (1, height, width)).astype(np.float32)
    native = NativeSpace(shipped_2d((24, 32)), {"image": scan})
    np.testing.assert_array_equal(native.add_difference(torch.zeros(1, 24, 32)), native.scan.array)
    difference = torch.from_numpy(rng.normal(0, 0.3, (1, 24, 32)).astype(np.float32))
    change = native.add_difference(difference) - native.scan.array
    np.testing.assert_allclose(change, native.back_difference(difference), atol=2e-3)
    twice = native.add_difference(2 * difference) - native.scan.array  # for a linear change, twice the difference
    np.testing.assert_allclose(twice, 2 * change, atol=4e-3)
    assert not change[:, ~native.field].any()
    expected = native.back(difference) - native.back(torch.zeros(1, 24, 32))
    np.testing.assert_allclose(native.back_difference(difference), expected, atol=2e-2)


@pytest.mark.parametrize("range_", [{"method": "window", "window_hu": (-160, 240)}, {"percentiles": (5, 95)}])
def test_a_difference_is_in_the_units_of_the_scan(range_):
    """Also where the scan is beyond the model's range: a bone of 900 HU becomes one of 800 HU."""
    scan = smooth(40, 64) * 2 - 800
    native = NativeSpace(shipped_2d((40, 64), **range_), {"image": scan})
    low, high = range_.get("window_hu", np.percentile(scan, (5, 95)))
    assert scan.max() > high + 1
    edited = native.add_difference(torch.full((1, 40, 64), -0.5))
    np.testing.assert_allclose(edited, scan - (high - low) / 4, rtol=1e-4, atol=1e-2)
    scaled = native.to_model_range(native.scan.array)
    np.testing.assert_allclose(scaled, (scan - low) / (high - low) * 2 - 1, atol=1e-4)


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
def test_slices_lie_where_they_were(tmp_path, axis):
    volume = smooth(31, 44, 23)
    source = write_scan(tmp_path / "volume.nii.gz", volume, OBLIQUE)
    expected = slice_volume(read_scan(source), axis, 9)
    native = NativeSpace(shipped_2d(method="minmax", axis=axis), {"image": str(source), "slice": 9})
    np.testing.assert_array_equal(native.scan.array, expected.array)
    np.testing.assert_array_equal(native.scan.affine, expected.affine)
    assert native.scan.suffix == ".nii.gz"
    path = write_native(tmp_path / "slice.nii.gz", native.back(native.image), native.scan)
    written = nib.load(path)
    assert written.shape == (*expected.array.shape[1:], 1)
    assert np.array_equal(written.affine, expected.affine.astype(np.float32))
    assert np.abs(np.asarray(written.dataobj)[..., 0] - expected.array[0]).mean() < 8


def test_pictures(tmp_path):
    pixels = np.clip(smooth(75, 111)[0] / 4, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    native = NativeSpace(shipped_2d(method="minmax"), {"image": str(tmp_path / "a.png")})
    assert native.scan.suffix == ".png"
    written = Image.open(write_native(tmp_path / "out.png", native.back(native.image), native.scan))
    assert (written.size, written.mode) == ((111, 75), "L")
    assert np.abs(np.asarray(written, float) - pixels).mean() < 4
    for value, shown in ((37.2, 37), (-5.0, 0), (300.0, 255)):  # neither stretched nor wrapped
        path = write_native(tmp_path / "b.png", np.full((1, 75, 111), value, np.float32), native.scan)
        assert set(np.asarray(Image.open(path)).flat) == {shown}
    # 16 bits would be cut to white
    Image.fromarray(pixels.astype(np.uint16) * 200).save(tmp_path / "deep.png")
    deep = NativeSpace(shipped_2d(), {"image": str(tmp_path / "deep.png")})
    assert deep.scan.suffix == ".nii.gz"
    Image.fromarray(pixels.astype(np.uint16)).save(tmp_path / "dark.png")
    assert NativeSpace(shipped_2d(), {"image": str(tmp_path / "dark.png")}).scan.suffix == ".nii.gz"
    assert nib.load(write_native(tmp_path / "deep.nii.gz", deep.scan.array, deep.scan)).get_data_dtype() == np.uint16


def test_refusals(tmp_path):
    path = write_scan(tmp_path / "a.nii.gz", smooth(30, 40))
    native = NativeSpace(shipped_2d(), {"image": str(path)})
    for way in (native.back, native.back_difference):
        with pytest.raises(ConfigError, match=r"\[1, 32, 32\].*\[1, 64, 64\]"):
            way(torch.zeros(1, 32, 32))
    with pytest.raises(ConfigError, match=r"a.nii.gz: the size is \[1, 64, 64\], but the scan's is \[1, 30, 40\]"):
        write_native(path, native.image.numpy(), native.scan)
    with pytest.raises(ConfigError, match="NormalizeIntensityd cannot be undone"):
        NativeSpace(Compose([ReadScand("image", 2), NormalizeIntensityd("image")]), {"image": str(path)}).field  # noqa: B018
    with pytest.raises(ConfigError, match="must begin with ReadScand"):
        NativeSpace(ToModelRanged("image"), {"image": str(path)})


def world(affine, shape):
    """The coordinates in mm of all voxels, (*shape, 3)."""
    return nib.affines.apply_affine(
        np.asarray(affine), np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    )


def pipeline(**values):
    parser = ConfigParser()
    parser.read_config(str(BUNDLE))
    parser.update({"dataset_dir": ".", **values})
    return parser.get_parsed_content("preprocessing")


@pytest.mark.goal(id="R10")
@pytest.mark.parametrize(
    ("dtype", "codes", "units", "scaling"),
    [
        (np.uint8, (1, 0), "mm", (1, 0)), (np.int16, (4, 1), "meter", (0.5, -100)), (np.uint16, (1, 1), "mm", (1, 0)),
        (np.int32, (4, 2), "micron", (1, 0)), (np.float32, (1, 1), "mm", (1, 0)), (np.float64, (0, 1), "mm", (1, 0)),
    ],
)  # fmt: skip
def test_type_codes_units_and_slope_are_kept_and_texts_are_not_and_masks_have_no_slope(
    tmp_path, dtype, codes, units, scaling
):
    affine = np.array([[0, -1.5, 0, 3], [2.0, 0, 0, -7], [0, 0, 4, 1.25], [0, 0, 0, 1]])
    image = nib.Nifti1Image(np.arange(240, dtype=dtype).reshape(6, 8, 5), affine)
    for name, code in zip(("sform", "qform"), codes, strict=True):
        getattr(image, f"set_{name}")(affine if code else None, code)
    image.header.set_xyzt_units(units)
    image.header["descrip"], image.header["cal_max"] = b"Doe^Jane", 900
    image.header.set_slope_inter(*scaling)
    nib.save(image, tmp_path / "in.nii.gz")
    scan = read_scan(tmp_path / "in.nii.gz")
    before, made = nib.load(tmp_path / "in.nii.gz"), nib.load(write_native(tmp_path / "out.nii.gz", scan.array, scan))
    factor = {"mm": 1, "meter": 1000, "micron": 0.001}[units]
    assert scan.spacing_mm == pytest.approx((2 * factor, 1.5 * factor, 4 * factor))
    assert np.array_equal(made.affine, before.affine)
    assert (made.get_data_dtype(), made.dataobj.slope) == (dtype, scaling[0])
    for field in ("sform_code", "qform_code", "xyzt_units"):
        assert made.header[field] == before.header[field]
    np.testing.assert_array_equal(made.get_fdata(), image.get_fdata() * scaling[0] + scaling[1])
    assert b"Doe" not in bytes(made.header.binaryblock)
    difference = nib.load(write_native(tmp_path / "d.nii.gz", scan.array - 100.25, scan, np.float32))
    assert difference.get_data_dtype() == np.float32
    np.testing.assert_allclose(difference.get_fdata(), scan.array[0] - 100.25, rtol=1e-6)
    labels = (np.arange(240, dtype=np.uint8) % 3).reshape(scan.array.shape)
    for suffix in (".nrrd", ".nii.gz"):
        written = read_scan(write_native(tmp_path / f"mask{suffix}", labels, scan, np.uint8))
        np.testing.assert_array_equal(written.array, labels)
        np.testing.assert_allclose(written.affine, scan.affine, rtol=1e-6, atol=1e-6 * factor)
    made = nib.load(tmp_path / "mask.nii.gz")
    assert (made.get_data_dtype(), made.dataobj.slope, made.dataobj.inter) == (np.uint8, 1, 0)
    assert (float(made.header["cal_max"]), made.header["sform_code"]) == (0, before.header["sform_code"])


@pytest.mark.goal(id="R11")
def test_values_that_do_not_fit_the_type_of_the_scan_get_one_that_holds_them(tmp_path, caplog):
    nib.save(nib.Nifti1Image(np.full((6, 6, 6), 7, "u1") + np.eye(6, dtype="u1"), np.eye(4)), tmp_path / "a.nii")
    scan = read_scan(tmp_path / "a.nii")
    array = scan.array.copy()
    array[0, 0, 0, :2] = (-3.0, 300.4)
    flat = Scan(scan.array[:, 0], scan.affine)  # a 2D scan, which has no header, is written in the same way
    for image, space in ((array, scan), (array[:, 0], flat)):
        made = nib.load(write_native(tmp_path / "b.nii", image, space))
        assert made.get_data_dtype() == np.int16
        assert np.asarray(made.dataobj).reshape(image[0].shape)[(0,) * (image.ndim - 2)][:3].tolist() == [-3, 300, 7]
    scan.header.set_slope_inter(2.0, 10.0)
    made = nib.load(write_native(tmp_path / "b.nii", array, scan))
    assert (made.get_data_dtype(), made.dataobj.slope) == (np.int16, 2.0)
    assert made.get_fdata()[0, 0, 1] == 300
    assert "clipped" not in caplog.text
    mask = nib.load(write_native(tmp_path / "b.nii", array, scan, np.uint8))
    assert np.asarray(mask.dataobj)[0, 0, :3].tolist() == [0, 255, 7]
    assert "2 voxels clipped to the range of uint8" in caplog.text


def test_downsampling_does_not_alias(tmp_path):
    """Stripes of a voxel become grey when the voxels get four times as large, not other stripes."""
    array = np.zeros((64, 24, 24))
    array[::2] = 900
    array += np.linspace(0, 10, 24)
    source = write_scan(tmp_path / "a.nii.gz", array[None], dtype=np.int16)
    transforms = pipeline(spacing_mm=[4.0, 1.0, 1.0], image_size=[16, 24, 24], percentiles=[0, 100])
    seen = transforms({"image": str(source)})["image"]
    middle = seen[0, 4:12]
    assert float(middle.std(dim=0).max()) < 0.15
    assert isinstance(seen, torch.Tensor)


def shipped_3d(size=(32, 40, 32), spacing=(1.5, 1.5, 1.5)):
    """As in bundles/diffae_3d."""
    return Compose([
        ReadScand("image", 3),
        ToRASd("image"),
        ToModelRanged("image"),
        SmoothForSpacingd("image", spacing),
        ToSpacingd("image", spacing),
        ResizeWithPadOrCropd("image", size, mode="constant", value=-1),
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("codes", "spacing"), [("RAS", (0.8, 1.2, 5.0)), ("SLP", (1.0, 1.0, 1.0)), ("IPL", (0.8, 1.2, 5.0))]
)
def test_maps_and_masks_lie_where_the_model_saw_them(codes, spacing):
    rng = np.random.default_rng(0)
    shape = tuple(int(v) for v in np.round(np.array((44, 56, 50)) / spacing))
    image = nib.Nifti1Image(rng.random(shape).astype(np.float32), np.diag([*spacing, 1.0]))
    target = nib.orientations.axcodes2ornt(codes)
    image = image.as_reoriented(nib.orientations.ornt_transform(nib.orientations.io_orientation(image.affine), target))
    native = NativeSpace(shipped_3d(), {"image": Scan(image.get_fdata(dtype=np.float32)[None], image.affine)})
    in_model, in_scan = world(native.image.affine, native.image.shape[1:]), world(image.affine, image.shape)
    inside = native.field
    # a map that is linear in mm is reproduced by linear interpolation, away from the edge of the field
    back = native.back_map(torch.from_numpy(in_model.transpose(3, 0, 1, 2)))
    assert back.shape == (3, *image.shape)
    deep = inside & (np.abs(in_scan - in_model.reshape(-1, 3).mean(0)) < np.array([20, 26, 20])).all(-1)
    assert deep.mean() > 0.3
    np.testing.assert_allclose(np.moveaxis(back, 0, -1)[deep], in_scan[deep], atol=0.05)
    assert not back[:, ~inside].any()
    # a half-space: voxels that are further from its plane than half a voxel of the model are on the right side
    normal = np.array([0.6, -0.64, 0.48])
    distance_model, distance = ((w - in_model.reshape(-1, 3).mean(0)) @ normal for w in (in_model, in_scan))
    labels = np.where(distance_model > 0, 7, 2)
    mask = native.back_mask(torch.from_numpy(labels)[None])
    assert (mask.dtype, mask.shape) == (np.uint8, (1, *image.shape))
    far = inside & (np.abs(distance) > 0.5 * 1.5 * np.abs(normal).sum())
    np.testing.assert_array_equal(mask[0][far], np.where(distance > 0, 7, 2)[far])
    assert not mask[:, ~inside].any()
    assert set(np.unique(mask[0][inside])) == {2, 7}


@settings(max_examples=12, deadline=None)
@given(height=st.integers(20, 200), width=st.integers(20, 200))
def test_each_pixel_of_a_picture_gets_the_nearest_pixel_of_the_mask(height, width):
    native = NativeSpace(shipped_2d(), {"image": np.random.default_rng(0).random((1, height, width))})
    mask = np.random.default_rng(1).integers(0, 256, (64, 64))
    nearest, is_tie = [], []
    for size in (height, width):
        resized = round(size * 64 / max(height, width))  # and padded to 64 on both sides
        position = (np.arange(size) + 0.5) * resized / size - 0.5
        nearest.append((64 - resized) // 2 + np.clip(np.floor(position + 0.5).astype(int), 0, resized - 1))
        is_tie.append(np.abs(position % 1 - 0.5) < 1e-3)
    back = native.back_mask(torch.from_numpy(mask)[None])[0]
    certain = ~(is_tie[0][:, None] | is_tie[1])
    np.testing.assert_array_equal(back[certain], mask[np.ix_(*nearest)][certain])


@pytest.mark.parametrize("values", [0.5, 256.0, float("nan")])
def test_a_mask_has_whole_numbers(values):
    native = NativeSpace(shipped_2d(), {"image": np.random.default_rng(0).random((1, 40, 40))})
    with pytest.raises(ConfigError, match="^the mask has values that are not whole numbers of 0 to 255; "):
        native.back_mask(torch.full((1, 64, 64), values))
    with pytest.raises(ConfigError, match=r"^the image has the size \[1, 64, 32\], but the case's is \[1, 64, 64\]"):
        native.back_mask(torch.zeros(1, 64, 32))


def test_threads_that_share_a_preprocessing_do_not_disturb_each_other():
    """MONAI's ``allow_missing_keys_mode``, which the way back needs, changes the transforms, also for other threads."""
    keys = ["image", "other"]
    preprocessing = Compose([ReadScand(keys, 2), ToModelRanged(keys), ResizeWithPadOrCropd(keys, (24, 24))])
    rng = np.random.default_rng(0)
    items = [{key: rng.random((1, 20 + i, 30)) for key in keys} for i in range(4)]

    def there_and_back(item):
        native = NativeSpace(preprocessing, item)
        return native.back(native.image)

    expected = [there_and_back(item) for item in items]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            results = list(threads.map(there_and_back, items * 6))
    finally:
        sys.setswitchinterval(interval)
    for back, serial in zip(results, expected * 6, strict=True):
        np.testing.assert_array_equal(back, serial)


# -- a whole case ------------------------------------------------------------------------------------------------------


ORIENTATIONS = ["".join(s) for axes in itertools.permutations(("LR", "PA", "IS")) for s in itertools.product(*axes)]


def oriented(array, spacing, codes):
    """A volume [X, Y, Z] in RAS order with this spacing, stored in another order of axes."""
    image = nib.Nifti1Image(array, np.diag([*spacing, 1.0]) + np.array([[0, 0, 0, v] for v in (7, -5, 2, 0)]))
    target = nib.orientations.axcodes2ornt(codes)
    return image.as_reoriented(nib.orientations.ornt_transform(nib.orientations.io_orientation(image.affine), target))


def all_slices(length):
    return range(length)


@pytest.mark.parametrize("codes", ORIENTATIONS[::5])
def test_slices_come_back_into_the_volume_whatever_its_orientation(tmp_path, codes):
    ras = np.random.default_rng(0).random((5, 7, 4)).astype(np.float32)
    nib.save(oriented(ras, (0.7, 1.1, 6.5), codes), tmp_path / "in.nii.gz")
    source = nib.load(tmp_path / "in.nii.gz")
    exact = Compose([ReadScand("image", 2), ToModelRanged("image", method="none", model_range=(0, 1))])
    space = CaseSpace(exact, {"image": str(tmp_path / "in.nii.gz")}, all_slices)
    images = space.inputs("image")
    assert images.shape == (4, 1, 7, 5)
    # the model sees the same slices whatever the order of the file's axes, from inferior to superior
    expected = np.stack([np.rot90(ras[::-1, :, k]) for k in range(4)])
    np.testing.assert_array_equal(images[:, 0].numpy(), expected)
    np.testing.assert_array_equal(space.back(images)[0], source.get_fdata(dtype=np.float32))
    np.testing.assert_array_equal(space.back_map(images * 3)[0], source.get_fdata(dtype=np.float32) * np.float32(3))
    written = nib.load(write_native(tmp_path / "out.nii.gz", space.back(images), space.scan))
    assert written.shape == source.shape
    assert np.array_equal(written.affine, source.affine)
    assert nib.aff2axcodes(written.affine) == tuple(codes)


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
def test_only_the_slices_in_use_are_filled(axis):
    volume = Scan(np.random.default_rng(1).random((1, 9, 8, 10)).astype(np.float32), np.diag([1.0, -2, 1, 1]))
    space = CaseSpace(
        shipped_2d((16, 16), axis=axis, method="minmax"), {"image": volume}, lambda length: range(2, length - 1, 3)
    )
    used = np.zeros((9, 8, 10), bool)
    along = np.moveaxis(used, {"sagittal": 0, "coronal": 1, "axial": 2}[axis], 0)
    along[list(space.spaces)] = True
    used = used[:, ::-1] if axis == "coronal" else used
    white, ones = torch.ones(len(space.spaces), 1, 16, 16), torch.ones(len(space.spaces), 2, 16, 16)
    np.testing.assert_array_equal(space.back(white)[0] == volume.array.min(), ~used)
    for array in (space.back_map(ones), space.back_mask(ones), space.field[None].repeat(2, 0)):
        np.testing.assert_array_equal(array > 0.999, np.stack([used, used]))
    assert ((space.back_difference(white) != 0)[0] == used).all()


def test_slices_that_cannot_be_used_are_skipped(caplog):
    array = np.random.default_rng(1).random((1, 9, 8, 6)).astype(np.float32)
    array[..., 4:] = 0
    space = CaseSpace(shipped_2d((16, 16), method="minmax"), {"image": array}, all_slices)
    assert list(space.spaces) == [0, 1, 2, 3]
    assert "2 of 6 slices are skipped; the first: " in caplog.text
    np.testing.assert_array_equal(space.back(space.inputs("image"))[..., 4:], 0)
    with pytest.raises(ScanError, match="^none of the 2 slices can be used; the first: "):
        CaseSpace(shipped_2d((16, 16), method="minmax"), {"image": array}, lambda _: (4, 5))


@pytest.mark.parametrize(("codes", "flat"), [("RAS", 2), ("LPI", 0), ("SAR", 1), ("ILP", 2)])
def test_a_volume_of_one_slice_is_one_image_and_comes_back_as_the_volume(tmp_path, codes, flat):
    shape = [6, 9, 8]
    shape[flat] = 1
    values = np.random.default_rng(0).integers(9, size=shape).astype("i2")
    nib.save(oriented(values, (1.0, 2.0, 3.0), codes), tmp_path / "a.nii")
    source = nib.load(tmp_path / "a.nii")
    exact = [ReadScand("image", 2), ToModelRanged("image", method="none", model_range=(0, 8))]
    space = CaseSpace(exact, {"image": str(tmp_path / "a.nii")}, lambda _: ())
    assert list(space.spaces) == [None]
    assert torch.equal(space.inputs("image")[0], exact[0]({"image": str(tmp_path / "a.nii")})["image"].as_tensor())
    native = NativeSpace(exact, {"image": str(tmp_path / "a.nii")})  # as ``reconstruct`` writes it
    whole = space.back(space.inputs("image")), space.scan
    for array, scan in (whole, *((each.back(each.image), each.scan) for each in (native, space.native))):
        written = nib.load(write_native(tmp_path / "out.nii", array, scan))
        np.testing.assert_array_equal(written.get_fdata(), source.get_fdata())
        assert written.get_data_dtype() == "i2"
        assert written.shape == source.shape
        assert np.array_equal(written.affine, source.affine)
    with pytest.raises(ConfigError, match="^slice: is 0, but the image is 2D and has no slices; leave it out$"):
        CaseSpace(exact, {"image": str(tmp_path / "a.nii"), "slice": 0}, all_slices)


def test_a_nifti_of_two_dimensions_stays_one(tmp_path):
    nib.save(
        nib.Nifti1Image(np.random.default_rng(0).random((12, 9)).astype(np.float32), np.diag([-2.0, 3, 1, 1])),
        tmp_path / "a.nii",
    )
    space = CaseSpace(shipped_2d((16, 16), method="minmax"), {"image": tmp_path / "a.nii"}, all_slices)
    written = nib.load(write_native(tmp_path / "out.nii", space.back(space.inputs("image")), space.scan))
    assert written.shape == (12, 9)
    assert np.array_equal(written.affine, nib.load(tmp_path / "a.nii").affine)


def test_several_images_are_sliced_together():
    pair = [ReadScand(["image", "other"], 2), ToModelRanged(["image", "other"], method="minmax")]
    volumes = {key: np.random.default_rng(seed).random((1, 4, 5, 6)) for seed, key in enumerate(("image", "other"))}
    space = CaseSpace(pair, volumes, all_slices)
    assert space.inputs("other").shape == (6, 1, 5, 4)
    np.testing.assert_allclose(space.back(space.inputs("image")), volumes["image"], rtol=1e-6)
    alone = CaseSpace(pair, {**volumes, "slice": 3}, all_slices)
    assert torch.equal(alone.inputs("other")[0], space.inputs("other")[3])
    with pytest.raises(ScanError, match="^slice 5 does not exist: the volume has 5 axial slices"):
        CaseSpace(pair, {**volumes, "other": volumes["other"][..., :5]}, all_slices)


@pytest.mark.parametrize("source", ["a.png", "a.nii"])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_was_written_is_read_even_if_it_is_constant_or_grey(tmp_path, source, channels):
    rng = torch.Generator().manual_seed(0)
    noise = torch.rand(1, 5, 7, generator=rng).expand(channels, -1, -1) * 4 - 2
    for image in (noise, torch.full((channels, 5, 7), -2.0)):
        file = write_image(tmp_path / "a", image, (-2.0, 2.0), source)
        made = read_image(file, (-2.0, 2.0))
        np.testing.assert_allclose(made.reshape(channels, 5, 7), image, atol=4 / 255 if source == "a.png" else 0)
