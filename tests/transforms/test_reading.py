import io
import os
import pickle

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Orientationd, Spacingd
from scan_files import save_series

from monai_diffae.data.scans import read_scan, slice_volume, write_scan
from monai_diffae.errors import ConfigError, ScanError, find_diffae_error
from monai_diffae.transforms import ReadScanD, ReadScand, ReadScanDict, reading


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
    turned = Compose([ReadScand("image", 3), Orientationd("image", "RAS"), Spacingd("image", (1, 1, 1))])(
        {"image": path}
    )
    assert turned["image"].shape == (1, 4, 5, 11)
    assert ReadScanD is ReadScanDict is ReadScand


def test_slices_read_their_volume_once(tmp_path, monkeypatch):
    path, calls = volume(tmp_path / "a.nii.gz"), []
    scan = read_scan(path)
    monkeypatch.setattr(reading, "read_scan", lambda p, **k: calls.append(p) or read_scan(p, **k))
    reading._read_volume.cache_clear()
    for axis, n in (("axial", 6), ("coronal", 5), ("sagittal", 4)):
        read = ReadScand("image", 2, axis=axis)
        for k in range(n):
            image = read({"image": path, "slice": k})["image"]
            np.testing.assert_array_equal(image.numpy(), slice_volume(scan, axis, k).array)
    assert len(calls) == 1
    np.testing.assert_allclose(np.diag(image.affine), [2, 1, 1, 1])  # sagittal: rows 2 mm, columns 1 mm
    with pytest.raises(ScanError, match="slice 9"):
        ReadScand("image", 2)({"image": path, "slice": 9})
    spaced = Compose([ReadScand("image", 2, axis="sagittal"), Spacingd("image", (1.0, 1.0))])(
        {"image": path, "slice": 0}
    )
    assert spaced["image"].shape == (1, 11, 5)


def test_slices_of_a_volume_that_was_written_again_are_the_new_ones(tmp_path):
    """A folder, and the header of a pair, keep their time when a file with voxels is written in place."""
    series, pair = save_series(tmp_path / "series"), tmp_path / "a.hdr"
    nib.save(nib.Nifti1Pair(np.arange(60.0, dtype=np.float32).reshape(3, 4, 5), np.eye(4)), pair)
    read = ReadScand("image", 2)
    for path, file in ((series, min(series.iterdir())), (pair, tmp_path / "a.img")):
        before = read({"image": str(path), "slice": 0})["image"]
        if path == pair:
            content = np.arange(60.0, 0, -1, dtype=np.float32).tobytes()
        else:
            dataset = pydicom.dcmread(file)
            dataset.PixelData = dataset.pixel_array[::-1].tobytes()
            dataset.save_as(buffer := io.BytesIO())
            content = buffer.getvalue()
        with file.open("r+b") as stream:
            stream.write(content)
        os.utime(file, ns=(0, file.stat().st_mtime_ns + 10**9))
        after = [read({"image": str(path), "slice": k})["image"] for k in range(5)]
        reading._read_volume.cache_clear()
        fresh = [read({"image": str(path), "slice": k})["image"] for k in range(5)]
        assert all(torch.equal(a, b) for a, b in zip(after, fresh, strict=True))
        assert path != pair or not torch.equal(before, after[0])


def test_files_as_channels(tmp_path):
    paths = [volume(tmp_path / f"{i}.nii", seed=i) for i in range(2)]
    image = ReadScand("image", 3, channels=2)({"image": paths})["image"]
    assert image.shape == (2, 4, 5, 6)
    assert not torch.equal(image[0], image[1])
    assert ReadScand("image", 2, channels=2)({"image": paths, "slice": 1})["image"].shape == (2, 5, 4)
    with pytest.raises(ScanError, match="2 files; expected 1"):
        ReadScand("image", 3)({"image": paths})
    for other, text in (
        (volume(tmp_path / "s.nii", (4, 5, 7)), "size"),
        (volume(tmp_path / "o.nii", spacing=3), "affine"),
    ):
        with pytest.raises(ScanError, match=text):
            ReadScand("image", 3, channels=2)({"image": [paths[0], other]})


def test_refusals_pass_through_compose(tmp_path):
    path = volume(tmp_path / "a.nii")
    with pytest.raises(RuntimeError) as caught:
        Compose([ReadScand("image", 2)])({"image": path})
    assert str(find_diffae_error(caught.value)).startswith("a.nii: a 3D volume (4 x 5 x 6)")
    with pytest.raises(ConfigError):
        ReadScand("image", 4)
    assert ReadScand("other", 3, allow_missing_keys=True)({"image": path}) == {"image": path}
