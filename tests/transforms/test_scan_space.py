"""Decoded images in the space of their scan, as applications write them."""

import numpy as np
import pytest
import torch
from monai.transforms import Compose, Orientationd, ResizeWithPadOrCropd, Spacingd
from PIL import Image

from monai_diffae.data.scans import write_scan
from monai_diffae.errors import ConfigError
from monai_diffae.transforms import NativeSpace, ReadScand, ToModelRanged, ToScanSpaced

AFFINE = np.array([[0, 0, 2.5, -11], [-1.5, 0, 0, 40], [0, 2.0, 0, -7], [0, 0, 0, 1.0]])


def preprocessing(spatial_dims, channels=1, size=8):
    volume = [Orientationd("image", "RAS", labels=None), Spacingd("image", 3.0)] if spatial_dims == 3 else []
    read = [ReadScand("image", spatial_dims, channels), *volume, ToModelRanged("image", method="minmax")]
    return Compose([*read, ResizeWithPadOrCropd("image", [size] * spatial_dims, value=-1.0)])


def served(transform, path):
    """What an application has before the postprocessing, with a decoded image that differs from the scan's."""
    item = transform({"image": str(path), "image_path": str(path), "model": "a"})
    return {**item, "pred": (item["image"] * 0.5).as_tensor()}


@pytest.fixture
def random():
    return np.random.default_rng(0)


def test_a_volume_is_the_native_space_s_with_its_affine(tmp_path, random):
    path = write_scan(tmp_path / "a.nii.gz", random.normal(size=(1, 9, 12, 10)), AFFINE)
    transform = preprocessing(3, size=6)
    item = served(transform, path)
    done = ToScanSpaced("pred", transform)(item)
    native = NativeSpace(transform, {"image": str(path)})
    assert not native.field.all()  # some of the scan is outside the model's field of view
    np.testing.assert_array_equal(done["pred"].as_tensor().numpy(), native.back(item["pred"]))
    np.testing.assert_array_equal(done["pred"].affine.numpy(), AFFINE)
    assert done["image"].meta["spatial_shape"].tolist() == [9, 12, 10]
    np.testing.assert_array_equal(done["image"].meta["original_affine"], AFFINE)
    assert item["pred"].shape == (1, 6, 6, 6)  # the item itself is unchanged


@pytest.mark.parametrize(("name", "scale", "dtype"), [("a.png", 1, torch.uint8), ("b.png", 200, torch.uint16)])
def test_a_picture_has_its_columns_first_and_whole_numbers(tmp_path, random, name, scale, dtype):
    pixels = (random.integers(0, 256, size=(6, 8)) * scale).astype(np.uint8 if scale == 1 else np.uint16)
    Image.fromarray(pixels).save(tmp_path / name)
    transform = preprocessing(2)
    item = served(transform, tmp_path / name)
    done = ToScanSpaced("pred", transform)({**item, "pred": item["image"]})
    assert done["pred"].dtype == dtype
    np.testing.assert_array_equal(done["pred"].as_tensor().numpy(), pixels.T)
    assert done["image"].meta["spatial_shape"].tolist() == [8, 6]


def test_values_beyond_a_picture_s_are_clipped(tmp_path, random):
    Image.fromarray(random.integers(0, 256, size=(8, 8), dtype=np.uint8)).save(tmp_path / "a.png")
    transform = preprocessing(2)
    item = served(transform, tmp_path / "a.png")
    done = ToScanSpaced("pred", transform)({**item, "pred": 3 * item["image"]})
    assert (int(done["pred"].min()), int(done["pred"].max())) == (0, 255)


def test_a_flat_image_keeps_its_place_in_space(tmp_path, random):
    path = write_scan(tmp_path / "a.nii.gz", random.normal(size=(1, 6, 8, 1)), AFFINE)
    transform = preprocessing(2)
    done = ToScanSpaced("pred", transform)(served(transform, path))
    native = NativeSpace(transform, {"image": str(path)})
    assert done["pred"].shape == (*native.scan.array.shape, 1)
    np.testing.assert_array_equal(done["pred"].affine.numpy(), native.scan.affine)
    assert done["image"].meta["spatial_shape"].tolist() == [*native.scan.array.shape[1:], 1]


def test_one_slice_of_a_volume_can_be_served(tmp_path, random):
    path = write_scan(tmp_path / "a.nii.gz", random.normal(size=(1, 6, 8, 5)), AFFINE)
    transform = preprocessing(2)
    item = transform({"image": str(path), "image_path": str(path), "slice": 2})
    done = ToScanSpaced("pred", transform)({**item, "pred": item["image"]})
    np.testing.assert_array_equal(
        done["pred"].affine.numpy(), NativeSpace(transform, {"image": str(path), "slice": 2}).scan.affine
    )


def test_what_cannot_be_served(tmp_path, random):
    Image.fromarray(random.integers(0, 256, size=(8, 8, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    transform = preprocessing(2, channels=3)
    item = served(transform, tmp_path / "a.png")
    with pytest.raises(ConfigError, match="pred: has 3 channels"):
        ToScanSpaced("pred", transform)(item)
    with pytest.raises(ConfigError, match="image_path: is missing"):
        ToScanSpaced("pred", transform)({**item, "image_path": ""})
    with pytest.raises(ConfigError, match="must begin with ReadScand"):
        ToScanSpaced("pred", Compose([]))


def test_the_reader_gives_monai_the_scan_s_own_size_and_affine(tmp_path, random):
    path = write_scan(tmp_path / "a.nii.gz", random.normal(size=(1, 9, 12, 10)), AFFINE)
    image = preprocessing(3)({"image": str(path)})["image"]
    assert image.shape == (1, 8, 8, 8)
    assert image.meta["spatial_shape"].tolist() == [9, 12, 10]
    np.testing.assert_array_equal(np.asarray(image.meta["original_affine"]), AFFINE)
    assert not np.array_equal(image.affine.numpy(), AFFINE)
