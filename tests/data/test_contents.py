"""Goal R5: a scan that was replaced, or that rots between two runs, has another content."""

import hashlib
import os
import shutil

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scan_files import save_series

from monai_diffae.data.contents import content_hash, item_hash


def flip_last_bit(path):
    """A change that alters neither the size nor, as far as a program can see, the time."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def test_a_single_file_has_the_hash_that_sha256sum_prints(tmp_path):
    path = tmp_path / "a.nii"
    path.write_bytes(b"voxels")
    assert content_hash([path]) == hashlib.sha256(b"voxels").hexdigest()
    os.utime(path, ns=(0, 0))
    assert content_hash([path.rename(tmp_path / "b.nii")]) == hashlib.sha256(b"voxels").hexdigest()


def image(path):
    sitk.WriteImage(sitk.GetImageFromArray(np.arange(60, dtype=np.int16).reshape(3, 4, 5)), str(path))
    return path


def pair(path):
    nib.save(nib.Nifti1Pair(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4)), path)
    return path


@pytest.mark.goal(id="R5")
@pytest.mark.parametrize(
    ("make", "name", "voxels"),
    [(image, "a.nii", "a.nii"), (image, "a.mha", "a.mha"), (image, "a.mhd", "a.raw"), (pair, "a.hdr", "a.img")],
)
def test_one_bit_of_the_voxels_counts(tmp_path, make, name, voxels):
    path = make(tmp_path / name)
    before = content_hash([path])
    flip_last_bit(tmp_path / voxels)
    assert content_hash([path]) != before


def test_voxels_beside_an_nrrd_header_count(tmp_path):
    (tmp_path / "a.nrrd").write_text("NRRD0004\ntype: uint8\ndimension: 1\nsizes: 4\ndata file: a.raw\n\n")
    (tmp_path / "a.raw").write_bytes(b"1234")
    before = content_hash([tmp_path / "a.nrrd"])
    flip_last_bit(tmp_path / "a.raw")
    assert content_hash([tmp_path / "a.nrrd"]) != before


def test_a_series_is_known_by_its_slices_alone(tmp_path):
    save_series(tmp_path / "ct", 3, "1.2.3", "a")
    whole = content_hash([tmp_path / "ct"])
    save_series(tmp_path / "ct", 3, "1.2.4", "b")
    (tmp_path / "ct" / "readme.txt").write_text("not a slice")
    assert content_hash([f"{tmp_path / 'ct'}#series=1.2.3"]) == whole
    assert content_hash([f"{tmp_path / 'ct'}#series=1.2.4"]) != whole
    slices = sorted((tmp_path / "ct").glob("a*"))
    slices[0].rename(tmp_path / "ct" / f"z{slices[0].suffix}")  # a name says nothing about a slice
    assert content_hash([f"{tmp_path / 'ct'}#series=1.2.3"]) == whole
    flip_last_bit(slices[1])
    assert content_hash([f"{tmp_path / 'ct'}#series=1.2.3"]) != whole


def test_a_missing_file_has_an_empty_hash_and_channels_have_an_order(tmp_path):
    assert content_hash([tmp_path / "a.nii"]) == ""
    for name in "ab":
        (tmp_path / f"{name}.nii").write_bytes(name.encode())
    files = [tmp_path / "a.nii", tmp_path / "b.nii"]
    assert content_hash(files) != content_hash(files[::-1])


def test_all_images_of_an_item_count_and_nothing_else(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode())
    item = {"image": str(tmp_path / "a"), "encoder_image": [str(tmp_path / "b")], "id": "x", "slice": 3}
    before = item_hash(item)
    assert item_hash({**item, "id": "y", "slice": 4, "mask": np.zeros(3)}) == before
    shutil.copy(tmp_path / "a", tmp_path / "b")
    assert item_hash(item) != before
