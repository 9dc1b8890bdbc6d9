"""Decoded images as files in the space of their scan, and as applications get them."""

import nibabel as nib
import numpy as np
import pytest
import tifffile
import torch
from monai.transforms import Compose, ResizeWithPadOrCropd
from PIL import Image

from monai_diffae import transforms
from monai_diffae.data import Case, Scan, write_scan
from monai_diffae.errors import ConfigError
from monai_diffae.transforms import NativeSpace, ReadScand, ToModelRanged, WriteReconstructiond
from monai_diffae.transforms.writing import image_suffix

PREPROCESSING = Compose([ReadScand("image", 2), ToModelRanged("image", method="minmax")])


@pytest.fixture
def case(tmp_path):
    file = write_scan(tmp_path / "scan.nii.gz", np.arange(20.0, 36.0).reshape(1, 4, 4), np.diag([2.0, 3, 1, 1]))
    return Case("a", {"image": file}, "a")


def test_files_are_replaced_only_if_asked(case, tmp_path):
    item = {"pred": torch.zeros(1, 4, 4), "id": "a"}
    WriteReconstructiond("pred", tmp_path / "out", [case], PREPROCESSING)(item)
    for grid in ("native", "model"):
        with pytest.raises(ConfigError, match=r"^a\.nii\.gz: exists; set overwrite"):
            WriteReconstructiond("pred", tmp_path / "out", [case], PREPROCESSING, grid=grid)(item)
    item = {"pred": torch.ones(1, 4, 4), "id": "a"}
    WriteReconstructiond("pred", tmp_path / "out", [case], PREPROCESSING, overwrite=True)(item)
    np.testing.assert_allclose(nib.load(tmp_path / "out" / "pred" / "a.nii.gz").get_fdata(), 35)


AFFINE = np.array([[0, 0, 2.5, -11], [-1.5, 0, 0, 40], [0, 2.0, 0, -7], [0, 0, 0, 1.0]])


def preprocessing(spatial_dims, channels=1, size=8):
    volume = [transforms.ToRASd("image"), transforms.ToSpacingd("image", [3, 3, 3])] if spatial_dims == 3 else []
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
    done = transforms.ToScanSpaced("pred", transform)(item)
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
    done = transforms.ToScanSpaced("pred", transform)({**item, "pred": item["image"]})
    assert done["pred"].dtype == dtype
    np.testing.assert_array_equal(done["pred"].as_tensor().numpy(), pixels.T)
    clipped = transforms.ToScanSpaced("pred", transform)({**item, "pred": 3 * item["image"]})["pred"]
    clipped = clipped.as_tensor().numpy()
    assert (clipped.min(), clipped.max()) == (0, 2**8 - 1 if dtype == torch.uint8 else 2**16 - 1)
    assert done["image"].meta["spatial_shape"].tolist() == [8, 6]
    tifffile.imwrite(tmp_path / "c.tif", pixels / np.float32(300))
    done = transforms.ToScanSpaced("pred", transform)(served(transform, tmp_path / "c.tif"))
    assert done["pred"].dtype == torch.float32


def test_one_slice_of_a_volume_can_be_served(tmp_path, random):
    path = write_scan(tmp_path / "a.nii.gz", random.normal(size=(1, 6, 8, 5)), AFFINE)
    transform = preprocessing(2)
    item = transform({"image": str(path), "image_path": str(path), "slice": 2})
    done = transforms.ToScanSpaced("pred", transform)({**item, "pred": item["image"]})
    np.testing.assert_array_equal(
        done["pred"].affine.numpy(), NativeSpace(transform, {"image": str(path), "slice": 2}).scan.affine
    )


def test_only_pictures_of_one_file_and_colours_are_written_as_png(tmp_path):
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(tmp_path / "a.png")
    Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4)).save(tmp_path / "grey.png")
    reader = ReadScand("image", 2, channels=3)
    assert reader.read({"image": tmp_path / "a.png"})["image"].suffix == ".png"
    assert reader.read({"image": [tmp_path / "grey.png"] * 3})["image"].suffix == ".nii.gz"
    assert [image_suffix((3, 4, 4), is_colour=is_colour) for is_colour in (False, True)] == [".nii.gz", ".png"]


def test_maps_and_images_are_written_in_the_space_of_a_file_with_several_channels(tmp_path):
    array, affine = np.arange(48, dtype=np.float32).reshape(2, 2, 3, 4), np.diag([2.0, 3, 4, 1])
    header = nib.Nifti1Image(np.moveaxis(array, 0, -1), affine).header
    scan = Scan(array, affine, header=header)
    for name, written in (("image", array + 1), ("map", array[:1] / 7)):
        file = nib.load(transforms.write_native(tmp_path / f"{name}.nii.gz", written, scan, np.float32))
        np.testing.assert_array_equal(file.affine, affine)
        expected = np.moveaxis(written, 0, -1).squeeze()
        np.testing.assert_array_equal(file.get_fdata(dtype=np.float32), expected)
