"""A file that was replaced, or that rots between two runs, is noticed by its content, its state or its checksum."""

import os

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from dicom_files import save_series

from monai_diffae.data.scan_states import content_hash, file_state
from monai_diffae.errors import ConfigError, ScanError, UnsafeInputError
from monai_diffae.handlers.checkpoint import read_checkpoint


def flip_last_bit(path):
    """A change that alters neither the size nor, as far as a program can see, the time."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def image(path):
    sitk.WriteImage(sitk.GetImageFromArray(np.arange(60, dtype=np.int16).reshape(3, 4, 5)), str(path))
    return path


def pair(path):
    nib.save(nib.Nifti1Pair(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4)), path)
    return path


@pytest.mark.goal(id="R5")
@pytest.mark.parametrize(
    ("make", "name", "voxels"),
    [(image, "a.nii", "a.nii"), (image, "a.mhd", "a.raw"), (pair, "a.hdr", "a.img"), (pair, "A.HDR", "A.IMG")],
)
def test_one_bit_of_the_voxels_counts(tmp_path, make, name, voxels):
    path = make(tmp_path / name)
    before = content_hash([path])
    flip_last_bit(tmp_path / voxels)
    assert content_hash([path]) != before


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


@pytest.fixture
def scan(tmp_path):
    path = tmp_path / "a.nii"
    path.write_bytes(b"scan")
    return path


def test_a_file_that_was_written_again_with_the_old_time_is_noticed_by_its_time_of_change(scan):
    before, time_ns = file_state([scan]), scan.stat().st_mtime_ns
    scan.write_bytes(b"cans")
    while scan.stat().st_ctime_ns == time_ns:  # the file system's clock may be coarse
        scan.write_bytes(b"cans")
    os.utime(scan, ns=(0, time_ns))
    assert file_state([scan]) != before


def test_the_voxels_that_an_mhd_header_names_count(tmp_path):
    header, voxels = tmp_path / "a.mhd", tmp_path / "voxels.bin"
    header.write_text("NDims = 3\nElementDataFile = voxels.bin\n")
    states = {file_state([header])}
    for content in (b"scan", b"longer"):
        voxels.write_bytes(content)
        states.add(file_state([header]))
    assert len(states) == 3
    voxels.unlink()
    header.unlink()
    assert file_state([header]) not in states


@pytest.mark.goal(id="R5")
def test_no_flipped_bit_changes_a_checkpoint(tmp_path):
    """tests/bundle/test_model_file.py tests each bit of a model's file."""
    torch.manual_seed(0)
    state = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.Linear(30, 5)).state_dict()
    path, refused = tmp_path / "checkpoint.pt", 0
    torch.save(state, path)
    content = path.read_bytes()
    for bit in np.random.default_rng(0).integers(8 * len(content), size=60):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(flipped)
        try:
            read = read_checkpoint(path, {*state})
        except (ScanError, ConfigError, UnsafeInputError):
            refused += 1
        else:
            assert all(torch.equal(read[name], state[name]) for name in state)
    assert refused > 30
