"""Scans as tensors with their affine, in the range of the model, smoothed for a spacing."""

import os
import pickle

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Spacingd
from scan_files import grown_mb

from monai_diffae.data.formats.axes import slice_volume
from monai_diffae.data.scans import read_scan, write_scan
from monai_diffae.errors import ConfigError, ScanError
from monai_diffae.transforms import ReadScand, SmoothForSpacingd, ToModelRanged, ToSpacingd, reading


def volume(path, shape=(4, 5, 6), seed=0, spacing=2.0):
    array = np.random.default_rng(seed).normal(100, 20, (1, *shape))
    return str(write_scan(path, array, np.diag([-1, 1, spacing, 1.0])))


def test_a_volume_with_its_affine_and_no_path(tmp_path):
    path = volume(tmp_path / "Doe^Jane.nii.gz")
    image = ReadScand("image", 3)({"image": path, "id": "a"})["image"]
    assert isinstance(image, MetaTensor)
    assert (image.shape, image.dtype) == ((1, 4, 5, 6), torch.float32)
    np.testing.assert_allclose(image.affine, np.diag([-1, 1, 2, 1]))
    assert b"Doe" not in pickle.dumps(image.meta)


def test_slices_read_their_volume_once(tmp_path):
    path = volume(tmp_path / "a.nii.gz")
    scan = read_scan(path)
    reading._read_volume.cache_clear()
    for axis, n in (("axial", 6), ("coronal", 5), ("sagittal", 4)):
        read = ReadScand("image", 2, axis=axis)
        for k in range(n):
            image = read({"image": path, "slice": k})["image"]
            np.testing.assert_array_equal(image.numpy(), slice_volume(scan, axis, k).array)
    assert reading._read_volume.cache_info().misses == 1
    np.testing.assert_allclose(np.diag(image.affine), [2, 1, 1, 1])  # sagittal: rows 2 mm, columns 1 mm
    with pytest.raises(ScanError, match="slice 9"):
        ReadScand("image", 2)({"image": path, "slice": 9})
    out = Compose([ReadScand("image", 2, axis="sagittal"), Spacingd("image", (1.0, 1.0))])({"image": path, "slice": 0})
    assert out["image"].shape == (1, 11, 5)


def test_slices_of_a_volume_that_was_written_again_are_the_new_ones(tmp_path):
    """The header of a pair, as a folder, keeps its time when a file with voxels is written in place."""
    array = np.arange(60.0, dtype=np.float32).reshape(3, 4, 5)
    nib.save(nib.Nifti1Pair(array, np.eye(4)), tmp_path / "a.hdr")
    read = ReadScand("image", 2)
    before = read({"image": str(tmp_path / "a.hdr"), "slice": 0})["image"]
    with (tmp_path / "a.img").open("r+b") as stream:
        stream.write((-array).tobytes("F"))
    os.utime(tmp_path / "a.img", ns=(0, (tmp_path / "a.img").stat().st_mtime_ns + 10**9))
    assert torch.equal(read({"image": str(tmp_path / "a.hdr"), "slice": 0})["image"], -before)


def test_files_as_channels(tmp_path):
    paths = [volume(tmp_path / f"{i}.nii", seed=i) for i in range(2)]
    image = ReadScand("image", 3, channels=2)({"image": paths})["image"]
    assert image.shape == (2, 4, 5, 6)
    assert not torch.equal(image[0], image[1])
    assert ReadScand("image", 2, channels=2)({"image": paths, "slice": 1})["image"].shape == (2, 5, 4)
    with pytest.raises(ScanError, match="has 2 sequences, but the model takes 1"):
        ReadScand("image", 3)({"image": paths})
    for other in (volume(tmp_path / "s.nii", (4, 5, 7)), volume(tmp_path / "o.nii", spacing=3)):
        assert ReadScand("image", 3, channels=2)({"image": [paths[0], other]})["image"].shape == image.shape
        with pytest.raises(ScanError):
            ReadScand("image", 3, channels=2, other_grids="refuse")({"image": [paths[0], other]})


IMAGE = torch.arange(1000.0).reshape(1, 10, 100)


def mapped(image, **options):
    return ToModelRanged("image", **options)({"image": image})["image"]


def test_percentiles():
    result = mapped(IMAGE)
    low, high = np.percentile(IMAGE, (0.5, 99.5))
    np.testing.assert_allclose(result, np.clip((IMAGE - low) / (high - low) * 2 - 1, -1, 1), atol=1e-5)


def test_window_minmax_none():
    ct = torch.tensor([[[-1000.0, -160, 40, 240, 3000]]])
    assert mapped(ct, method="window").flatten().tolist() == [-1, -1, 0, 1, 1]
    assert mapped(ct, method="window", window_hu=(-1000, 3000), model_range=(0, 1))[0, 0, 2].item() == pytest.approx(
        0.26
    )
    assert mapped(IMAGE, method="minmax", model_range=(0, 1)).max() == 1
    assert torch.equal(mapped(IMAGE / 1000, method="none"), IMAGE / 1000)


def test_channels_type_and_geometry():
    image = torch.cat([IMAGE, IMAGE * 50])
    apart = mapped(image, method="minmax")
    torch.testing.assert_close(apart[0], apart[1])
    image = MetaTensor(IMAGE, affine=torch.diag(torch.tensor([2.0, 3, 1, 1])))
    result = mapped(image)
    assert isinstance(result, MetaTensor)
    assert torch.equal(result.affine, image.affine)
    assert mapped(IMAGE.numpy().astype(np.int16)).dtype == torch.float32
    for method in ("percentiles", "window", "none"):
        with pytest.raises(ScanError, match=r"^case7: "):  # every voxel has the same value
            ToModelRanged("image", method=method)({"image": torch.zeros(1, 4, 4), "id": "case7"})
    for wrong in ({"method": "z"}, {"window_hu": (1, 0)}, {"model_range": (1, -1)}):
        with pytest.raises(ConfigError):
            ToModelRanged("image", **wrong)


@pytest.mark.parametrize("method", ["percentiles", "window"])
def test_back_to_the_scans_units(method):
    image = MetaTensor(torch.cat([IMAGE, IMAGE * 50 - 300]))
    transform = ToModelRanged("image", method=method, window_hu=(10, 20000))
    result = transform({"image": image})
    assert len(result["image"].applied_operations) == 1
    back = transform.inverse(result)["image"]
    assert not back.applied_operations
    assert not image.applied_operations
    inside = result["image"].abs() < 1
    torch.testing.assert_close(back[inside], image[inside], rtol=1e-5, atol=0.01)
    # what was clipped stays at the ends, which were inside the image's own
    assert back.max() <= image.max()
    assert back.min() >= image.min()


def scan(shape, spacing):
    values = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    return {"id": "case-7", "image": MetaTensor(values, affine=torch.diag(torch.tensor([*spacing, 1.0])))}


def test_a_spacing_that_leaves_less_than_two_voxels_is_named():
    item = scan((35, 51, 36), (1.0, 1.0, 1.0))
    with pytest.raises(ScanError, match="^case-7: at spacing_mm .*, 35 x 51 x 36 mm are less than 2 voxels along"):
        SmoothForSpacingd("image", [30, 10, 10])(item)
    assert SmoothForSpacingd("image", [17.5, 10, 18])(item)["image"].shape == (1, 35, 51, 36)
    thick = scan((30, 30, 2), (1.0, 1.0, 8.0))  # few slices, which stay as they are
    assert SmoothForSpacingd("image", [2, 2, 8])(thick)["image"].shape == (1, 30, 30, 2)


@pytest.mark.goal(id="R15")
def test_a_wrong_spacing_does_not_ask_for_all_memory():
    with pytest.raises(ScanError, match=r"at spacing_mm 1 x 1 x 1, .* 15.3 GiB, and the limit is 2 GiB; correct"):
        SmoothForSpacingd("image", [1, 1, 1])(scan((16, 16, 16), (1e6, 1.0, 1.0)))
    long = scan((16, 16, 16), (2e3, 1.0, 1.0))  # 29 MB, and 420 MB for the grid of all voxels
    assert grown_mb(lambda: ToSpacingd("image", [1, 1, 1], slab=1 << 17)(long)) < 80


def test_volumes_are_resampled_in_slabs_as_in_one_go_and_back():
    item = scan((9, 12, 10), (1.0, 2.5, 1.2))
    whole, slabs = (ToSpacingd("image", [0.9, 1, 1], slab=size) for size in (1 << 23, 300))
    one, other = whole(item)["image"], slabs(item)["image"]
    assert one.shape == other.shape == (1, 10, 28, 12)
    torch.testing.assert_close(one.as_tensor(), other.as_tensor(), rtol=0, atol=1e-6)
    torch.testing.assert_close(one.affine, other.affine)
    back = [spacing.inverse({"image": each})["image"] for spacing, each in ((whole, one), (slabs, other))]
    torch.testing.assert_close(back[0].as_tensor(), back[1].as_tensor(), rtol=0, atol=1e-5)


def test_each_channel_has_its_own_intensities():
    image = torch.stack([torch.linspace(-1000, 1000, 100), torch.linspace(0, 7, 100)]).reshape(2, 10, 10)
    scaled = mapped(image, method=["window", "minmax"], window_hu=[(-160, 240), (0, 1)])
    assert torch.equal(scaled[:1], mapped(image[:1], method="window"))
    assert torch.equal(scaled[1:], mapped(image[1:], method="minmax"))
    with pytest.raises(ConfigError, match="3 values for 2 channels"):
        mapped(image, method=["window", "minmax", "none"])
