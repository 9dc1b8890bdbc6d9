import copy

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    NormalizeIntensityd,
    Orientationd,
    Resized,
    ResizeWithPadOrCrop,
    ResizeWithPadOrCropd,
    Spacingd,
)
from PIL import Image
from scan_files import save_series, shared

from monai_diffae.data.scans import Scan, read_scan, slice_volume, write_scan
from monai_diffae.errors import ConfigError, ScanError
from monai_diffae.transforms import NativeSpace, ReadScand, ToModelRanged, write_native

OBLIQUE = np.array([[-0.9, 0.1, 0.3, 40.0], [0.1, 1.1, -0.2, -70.0], [0.1, 0.2, 2.9, 13.0], [0, 0, 0, 1]])


def shipped_2d(size=(64, 64), keys="image", axis="axial", **range_):
    """As in bundles/diffae_2d."""
    return Compose([
        ReadScand(keys, 2, axis=axis),
        ToModelRanged(keys, **range_),
        Resized(keys, max(size), size_mode="longest", mode="bilinear", anti_aliasing=True),
        ResizeWithPadOrCropd(keys, size, mode="constant", value=-1),
    ])  # fmt: skip


def of_volumes(size):
    return Compose([
        ReadScand("image", 3),
        Orientationd("image", "RAS", labels=None),
        Spacingd("image", (1.5, 1.5, 1.5), mode="bilinear"),
        ToModelRanged("image", method="minmax"),
        Resized("image", max(size), size_mode="longest", mode="trilinear", anti_aliasing=True),
        ResizeWithPadOrCropd("image", size, mode="constant", value=-1),
    ])  # fmt: skip


def smooth(*shape):
    """Waves of one period along each axis, of 100 to 900."""
    grids = np.meshgrid(*(np.linspace(0, 2 * np.pi, n) for n in shape), indexing="ij")
    waves = np.mean([np.cos(g + i) for i, g in enumerate(grids)], axis=0)
    return (500 + 400 * waves / np.abs(waves).max())[None].astype(np.float32)


@settings(max_examples=15, deadline=None)
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


@pytest.mark.parametrize("shape", [(90, 45), (45, 90), (64, 64)])
def test_what_was_cropped_keeps_its_values(tmp_path, shape):
    scan = smooth(*shape)
    path = write_scan(tmp_path / "a.nii.gz", scan)
    native = NativeSpace(shipped_2d((32, 48), method="minmax"), {"image": str(path)})
    # the longest side becomes 48; rows are cropped to 32, columns padded to 48
    rows = int(np.round(shape[0] * 48 / max(shape)))
    covered = min(32 / rows, 1)
    assert native.field.mean() == pytest.approx(covered, abs=1.5 / shape[0])
    white = native.back(torch.ones(1, 32, 48))
    np.testing.assert_array_equal(white[:, ~native.field], scan[:, ~native.field])
    np.testing.assert_allclose(white[:, native.field], scan.max(), rtol=1e-6)  # the crop's edge is not darkened
    difference = native.back_difference(torch.ones(1, 32, 48))
    assert not difference[:, ~native.field].any()
    np.testing.assert_allclose(difference[:, native.field], np.ptp(scan) / 2, rtol=1e-5)


def test_differences(tmp_path):
    path = write_scan(tmp_path / "a.nii.gz", smooth(50, 71))
    native = NativeSpace(shipped_2d((40, 64)), {"image": str(path)})
    one, other = torch.rand(2, 1, 40, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = native.back(one) - native.back(other)
    np.testing.assert_allclose(native.back_difference(one - other), expected, atol=1e-3)
    assert not native.back_difference(torch.zeros(1, 40, 64)).any()
    np.testing.assert_array_equal(native.back(one), native.back(one))  # going back uses nothing up


@settings(max_examples=15, deadline=None)
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
    assert native.suffix == ".nii.gz"
    path = write_native(tmp_path / "slice.nii.gz", native.back(native.image), native.scan)
    written = nib.load(path)
    assert written.shape == (*expected.array.shape[1:], 1)
    assert np.array_equal(written.affine, expected.affine.astype(np.float32))
    # the volume at the world coordinates of the slice's pixels
    indices = np.stack(np.meshgrid(*map(np.arange, written.shape), indexing="ij"), -1).reshape(-1, 3)
    world = nib.affines.apply_affine(written.affine, indices)
    inside = np.round(nib.affines.apply_affine(np.linalg.inv(OBLIQUE), world)).astype(int)
    there = volume[0][tuple(inside.T)]
    assert np.abs(np.asarray(written.dataobj).reshape(-1) - there).mean() < 8


@pytest.mark.parametrize("size", [(32, 32, 32), (40, 24, 40)])
@pytest.mark.parametrize("flips", [np.diag([1.0, 1, 1, 1]), np.diag([-1.0, 1, -1, 1])])
def test_volumes(tmp_path, size, flips):
    affine = OBLIQUE @ flips @ np.eye(4)[[1, 2, 0, 3]]  # the first axis is that of the 3 mm slices
    volume = smooth(21, 50, 37)
    source = write_scan(tmp_path / "in.nii.gz", volume, affine)
    native = NativeSpace(of_volumes(size), {"image": str(source)})
    back = native.back(native.image)
    assert native.image.shape == (1, *size)
    assert native.field.all() == (size == (32, 32, 32))
    inside = np.abs(back - volume)[:, native.field]
    assert inside.mean() < 12
    np.testing.assert_array_equal(back[:, ~native.field], volume[:, ~native.field])
    written = nib.load(write_native(tmp_path / "out.nii.gz", back, native.scan))
    assert written.shape == nib.load(source).shape
    assert np.array_equal(written.affine, nib.load(source).affine)
    assert written.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_array_equal(native.add_difference(torch.zeros(1, *size)), native.scan.array)
    edited = native.add_difference(torch.full((1, *size), 0.5)) - native.scan.array
    assert not edited[:, ~native.field].any()
    assert np.ptp(edited[:, native.field]) < 1e-3
    middle = tuple(n // 2 for n in volume.shape[1:])
    constant = native.back(torch.zeros(1, *size))[0][middle]
    low, high = volume.min(), volume.max()
    assert constant == pytest.approx((low + high) / 2, rel=0.03)  # resampling moves the volume's own ends a little


def test_pictures(tmp_path):
    pixels = np.clip(smooth(75, 111)[0] / 4, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    native = NativeSpace(shipped_2d(method="minmax"), {"image": str(tmp_path / "a.png")})
    assert native.suffix == ".png"
    written = Image.open(write_native(tmp_path / "out.png", native.back(native.image), native.scan))
    assert (written.size, written.mode) == ((111, 75), "L")
    assert np.abs(np.asarray(written, float) - pixels).mean() < 4
    for value, shown in ((37.2, 37), (-5.0, 0), (300.0, 255)):  # neither stretched nor wrapped
        path = write_native(tmp_path / "b.png", np.full((1, 75, 111), value, np.float32), native.scan)
        assert set(np.asarray(Image.open(path)).flat) == {shown}
    # 16 bits would be cut to white
    Image.fromarray(pixels.astype(np.uint16) * 200).save(tmp_path / "deep.png")
    deep = NativeSpace(shipped_2d(), {"image": str(tmp_path / "deep.png")})
    assert deep.suffix == ".nii.gz"
    assert nib.load(write_native(tmp_path / "deep.nii.gz", deep.scan.array, deep.scan)).get_data_dtype() == np.uint16


def test_real_radiographs(tmp_path):
    files = sorted(shared("cxr_pneumonia_224").glob("train/*/*.jpeg"))[::700][:4]
    assert files
    for file in files:
        native = NativeSpace(shipped_2d((128, 128)), {"image": str(file)})
        path = write_native(tmp_path / f"a{native.suffix}", native.back(native.image), native.scan)
        back, pixels = (np.asarray(Image.open(p).convert("L"), float) for p in (path, file))
        assert back.shape == pixels.shape
        assert np.abs(back - pixels).mean() < 5
        assert np.corrcoef(back.ravel(), pixels.ravel())[0, 1] > 0.98


def test_dicom_and_other_images_of_the_case(tmp_path):
    folder = save_series(tmp_path / "ct")
    other = write_scan(tmp_path / "b.nii.gz", smooth(30, 40))
    item = {"image": str(folder), "second": str(folder), "slice": 2, "id": "a"}
    native = NativeSpace(shipped_2d((16, 16), ["image", "second"]), item, "second")
    assert native.back(native.image).shape == native.scan.array.shape
    assert native.suffix == ".nii.gz"
    assert NativeSpace(shipped_2d(keys=["image", "second"]), {"image": str(other), "second": str(other)}).field.all()
    stored = nib.load(write_native(tmp_path / "a.nii.gz", native.back(native.image), native.scan)).get_data_dtype()
    assert stored == np.uint8  # 200 to 223


@pytest.mark.parametrize(
    ("values", "array", "dtype"),
    [
        ([0, 200], [3.4, 3.6], np.uint8),
        ([-1000, 2000], [3.4, 3.6], np.int16),
        ([0, 200], [-0.6, 3.6], np.int16),
        ([0, 60000], [3.4, 3.6], np.uint16),
        ([0, 200], [-3.0, 70000.0], np.int32),
        ([0, 200], [0.0, 2.0**31], np.float32),
        ([0, 0.5], [3.4, 3.6], np.float32),
    ],
)
def test_whole_numbers_stay_whole(tmp_path, values, array, dtype):
    scan = Scan(np.array(values, np.float32).reshape(1, 2, 1, 1), OBLIQUE)
    made = np.array(array, np.float32).reshape(1, 2, 1, 1)
    written = nib.load(write_native(tmp_path / "a.nii.gz", made, scan))
    assert written.get_data_dtype() == dtype
    np.testing.assert_array_equal(written.get_fdata().ravel(), made.ravel() if dtype == np.float32 else np.rint(array))
    exact = nib.load(write_native(tmp_path / "a.nii.gz", made, scan, dtype=np.float32))
    np.testing.assert_array_equal(exact.get_fdata().ravel(), made.ravel())


def test_refusals(tmp_path):
    path = write_scan(tmp_path / "a.nii.gz", smooth(30, 40))
    (tmp_path / "empty.nii.gz").touch()
    with pytest.raises(ScanError, match=r"^empty.nii.gz: the file is empty"):
        NativeSpace(shipped_2d(), {"image": str(tmp_path / "empty.nii.gz")})
    native = NativeSpace(shipped_2d(), {"image": str(path)})
    for way in (native.back, native.back_difference):
        with pytest.raises(ConfigError, match=r"\[1, 32, 32\].*\[1, 64, 64\]"):
            way(torch.zeros(1, 32, 32))
    with pytest.raises(ConfigError, match=r"a.nii.gz: the size is \[1, 64, 64\], but the scan's is \[1, 30, 40\]"):
        write_native(path, native.image.numpy(), native.scan)
    with pytest.raises(ConfigError, match="NormalizeIntensityd cannot be undone"):
        NativeSpace(Compose([ReadScand("image", 2), NormalizeIntensityd("image")]), {"image": str(path)})
    with pytest.raises(ConfigError, match="must begin with ReadScand"):
        NativeSpace(ToModelRanged("image"), {"image": str(path)})


def test_monai_modifies_its_records():
    """Why the records are copied: undoing ResizeWithPadOrCrop a second time with the same ones fails in MONAI."""
    transform = ResizeWithPadOrCrop((8, 8))
    image = transform(MetaTensor(torch.rand(1, 6, 10)))
    records = image.applied_operations

    def undo(records):
        return transform.inverse(MetaTensor(torch.ones(1, 8, 8), applied_operations=list(records)))

    assert undo(copy.deepcopy(records)).shape == (1, 6, 10)
    undo(records)
    with pytest.raises(KeyError):
        undo(records)
