"""Maps and masks in the model's grid, converted to the scan's space."""

import itertools
import sys
from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import Compose, Orientationd, Resized, ResizeWithPadOrCropd, Spacingd
from scan_files import shared

from monai_diffae.data.scans import Scan, read_scan, write_scan
from monai_diffae.errors import ConfigError
from monai_diffae.transforms import NativeSpace, ReadScand, SmoothForSpacingd, ToModelRanged, write_native

OBLIQUE = np.array([[-0.9, 0.1, 0.3, 40.0], [0.1, 1.1, -0.2, -70.0], [0.1, 0.2, 2.9, 13.0], [0, 0, 0, 1]])
ORIENTATIONS = ["RAS", "LPS", "SLP", "AIR", "IPL"]


def shipped_2d(size=(64, 64)):
    """As in bundles/diffae_2d."""
    return Compose([
        ReadScand("image", 2),
        ToModelRanged("image", method="minmax"),
        Resized("image", max(size), size_mode="longest", mode="bilinear", anti_aliasing=True),
        ResizeWithPadOrCropd("image", size, mode="constant", value=-1),
    ])  # fmt: skip


def shipped_3d(size=(32, 40, 32), spacing=(1.5, 1.5, 1.5)):
    """As in bundles/diffae_3d."""
    return Compose([
        ReadScand("image", 3),
        Orientationd("image", "RAS", labels=None),
        ToModelRanged("image"),
        SmoothForSpacingd("image", spacing),
        Spacingd("image", spacing, mode="bilinear", padding_mode="border"),
        ResizeWithPadOrCropd("image", size, mode="constant", value=-1),
    ])  # fmt: skip


def world(affine, shape):
    """The coordinates in mm of all voxels, (*shape, 3)."""
    return nib.affines.apply_affine(
        np.asarray(affine), np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    )


@pytest.mark.parametrize(
    ("codes", "spacing"), list(itertools.product(ORIENTATIONS, [(1.0, 1.0, 1.0), (0.8, 1.2, 5.0)]))
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


@settings(max_examples=30, deadline=None)
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


def test_no_intensities_are_applied_and_the_edge_is_not_darkened():
    native = NativeSpace(shipped_2d((32, 48)), {"image": 1000 * np.random.default_rng(0).random((1, 90, 45))})
    assert 0 < native.field.mean() < 1
    back = native.back_map(torch.full((2, 32, 48), 0.25))
    np.testing.assert_allclose(back[:, native.field], 0.25, rtol=1e-6)
    assert not back[:, ~native.field].any()
    mask = native.back_mask(torch.ones(1, 32, 48, dtype=torch.bool))
    np.testing.assert_array_equal(mask[0], native.field)
    image = native.image.clone()
    native.back_map(image)
    assert torch.equal(image, native.image)


@pytest.mark.parametrize("values", [0.5, -1.0, 256.0, float("nan")])
def test_a_mask_has_whole_numbers(values):
    native = NativeSpace(shipped_2d(), {"image": np.random.default_rng(0).random((1, 40, 40))})
    with pytest.raises(ConfigError, match="^the mask has values that are not whole numbers of 0 to 255; "):
        native.back_mask(torch.full((1, 64, 64), values))
    with pytest.raises(ConfigError, match=r"^the image has the size \[1, 64, 32\], but the case's is \[1, 64, 64\]"):
        native.back_mask(torch.zeros(1, 64, 32))


def test_a_mask_beside_a_scan_with_a_slope_has_labels_and_no_slope(tmp_path):
    image = nib.Nifti1Image(np.arange(960, dtype=np.int16).reshape(12, 10, 8), OBLIQUE)
    image.header.set_slope_inter(0.5, -100)
    image.header["cal_max"] = 900
    image.set_sform(OBLIQUE, code=4)
    nib.save(image, tmp_path / "in.nii.gz")
    scan = read_scan(tmp_path / "in.nii.gz")
    mask = (np.arange(960) % 3).reshape(scan.array.shape).astype(np.uint8)
    for suffix in (".nii.gz", ".nrrd"):
        path = write_native(tmp_path / f"mask{suffix}", mask, scan, np.uint8)
        written = read_scan(path)
        np.testing.assert_array_equal(written.array, mask)
        np.testing.assert_allclose(written.affine, scan.affine, atol=1e-6)
    made = nib.load(tmp_path / "mask.nii.gz")
    assert np.asarray(made.dataobj).dtype.kind in "uf"
    assert made.get_data_dtype() == np.uint8
    assert (made.dataobj.slope, made.dataobj.inter, float(made.header["cal_max"])) == (1, 0, 0)
    assert np.array_equal(made.affine, nib.load(tmp_path / "in.nii.gz").affine)
    assert int(made.header["sform_code"]) == 4


def test_a_map_of_a_picture_is_not_written_as_png(tmp_path):
    scan = read_scan(write_scan(tmp_path / "a.png", np.random.default_rng(0).random((1, 8, 9))))
    with pytest.raises(
        ConfigError, match="^map.png: PNG holds uint8, not float32; use .nii.gz or .nrrd, or write uint8$"
    ):
        write_native(tmp_path / "map.png", scan.array / 255, scan, np.float32)
    assert read_scan(write_native(tmp_path / "map.nii.gz", scan.array / 255, scan, np.float32)).array.max() <= 1
    assert read_scan(write_native(tmp_path / "m.png", scan.array > 9, scan, bool)).array.max() == 1


@pytest.mark.parametrize(
    "name", ["dicom_mr_brain_pgbm003/11-T1post-18670", "hippocampus_hcrop_dicom/Study1_13_HCropVolume"]
)
def test_real_series(tmp_path, name):
    """A mask of bright voxels in the model's grid covers the scan's bright voxels."""
    set_name, _, series = name.partition("/")
    folder = shared(set_name) / series
    spacing, size = ((1.5, 1.5, 6.5), (160, 160, 22)) if "brain" in name else ((1.5,) * 3, (32, 40, 32))
    native = NativeSpace(shipped_3d(size, spacing), {"image": str(folder)})
    bright = native.back_mask(native.image.as_tensor() > 0)[0] > 0
    threshold = native.back(torch.zeros(native.image.shape))[0][tuple(n // 2 for n in native.field.shape)]
    expected = (native.scan.array[0] > threshold) & native.field
    dice = 2 * (bright & expected).sum() / (bright.sum() + expected.sum())
    assert dice > 0.85
    path = write_native(tmp_path / "bright.nrrd", bright[None], native.scan, np.uint8)
    np.testing.assert_allclose(read_scan(path).affine, native.scan.affine, atol=1e-9)


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
            results = list(threads.map(there_and_back, items * 25))
    finally:
        sys.setswitchinterval(interval)
    for back, serial in zip(results, expected * 25, strict=True):
        np.testing.assert_array_equal(back, serial)
