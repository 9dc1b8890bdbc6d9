"""Goal R5: flipped bits and cuts are noticed, by the format's checksum or by the hash that verify and embed keep.

The reader refuses a file whose format has a checksum. For the others, the content's hash says that a file is no longer
the one that was read.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from dicom_files import make_plane, positions, save_planes
from PIL import Image
from scan_files import save_nifti, values

from monai_diffae import embed, verify
from monai_diffae.data.cases import Case
from monai_diffae.data.scans import read_scan
from monai_diffae.data.verification import read_case
from monai_diffae.errors import ConfigError, ScanError

pytestmark = pytest.mark.goal(id="R5")

FLIPS, CUTS = 200, 20


def _image(path: Path, packed: bool) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(values(12, 11, 10)), str(path), packed)


FORMATS = {
    "a.nii": save_nifti,
    "a.nii.gz": save_nifti,
    "a.png": lambda path: Image.fromarray(values(40, 40).astype(np.uint8)).save(path),
    "a.nrrd": lambda path: _image(path, False),
    "packed.nrrd": lambda path: _image(path, True),
    "a.mha": lambda path: _image(path, False),
    "packed.mha": lambda path: _image(path, True),
    "a.dcm": lambda path: make_plane(positions()[0]).save_as(path),
}
CHECKED = {"a.nii.gz", "a.png"}
"""Formats whose checksums cover the whole file: the reader itself refuses every flip that changes a voxel."""


@pytest.mark.parametrize("name", FORMATS)
def test_single_bit_flips_are_noticed(tmp_path, name, record_property):
    path = tmp_path / name
    FORMATS[name](path)
    data, whole, case = path.read_bytes(), read_scan(path).array, Case("a", {"image": path}, "a")
    before, rng = read_case(case).content, np.random.default_rng(0)
    refused = hashed = 0
    for byte, bit in zip(rng.integers(0, len(data), FLIPS), rng.integers(0, 8, FLIPS), strict=True):
        flipped = bytearray(data)
        flipped[byte] ^= 1 << int(bit)
        path.write_bytes(flipped)
        reading = read_case(case)
        if reading.error:
            assert len(reading.error) <= 200
            refused += 1
        elif reading.content != before:
            hashed += 1
            if name in CHECKED:
                np.testing.assert_array_equal(read_scan(path).array, whole)
    record_property("figure", f"{name}: {refused} flips refused by the reader, {hashed} noticed by the hash")
    assert refused + hashed == FLIPS


@pytest.mark.parametrize("name", FORMATS)
def test_cuts_are_noticed(tmp_path, name, record_property):
    path = tmp_path / name
    FORMATS[name](path)
    data, whole, case = path.read_bytes(), read_scan(path).array, Case("a", {"image": path}, "a")
    before, refused = read_case(case).content, 0
    for length in np.linspace(0, len(data) - 1, CUTS).astype(int):
        path.write_bytes(data[:length])
        reading = read_case(case)
        if reading.error:
            assert len(reading.error) <= 200
            refused += 1
        else:  # behind the last pixel
            assert reading.content != before
            np.testing.assert_array_equal(read_scan(path).array, whole)
    record_property("figure", f"{name}: {refused} of {CUTS} cuts refused by the reader, the others noticed by the hash")
    assert refused >= CUTS - 1


def _flip(path: Path) -> None:
    """Flip a bit in the voxels as a failing disk does: size and time stay the same."""
    state, data = path.stat(), bytearray(path.read_bytes())
    data[-9] ^= 4
    path.write_bytes(data)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


@pytest.mark.parametrize("suffix", [".nii", ".dcm"])
def test_verify_notices_rot_that_leaves_size_and_time_alone(tmp_path, suffix):
    folder = tmp_path / "scans"
    folder.mkdir()
    for k in range(3):
        place = folder / f"s{k}{suffix}"
        if suffix == ".nii":
            save_nifti(place, values(8, 9, 10) + k)
        else:
            make_plane(positions()[k], number=k).save_as(place)
    before = verify(folder).verification.fingerprint
    assert before == verify(folder).verification.fingerprint
    _flip(folder / f"s1{suffix}")
    assert read_scan(folder / f"s1{suffix}").array.shape
    assert before != verify(folder).verification.fingerprint


@pytest.mark.parametrize("suffix", [".nii", ".dcm"])
def test_embed_notices_a_flipped_bit_on_its_next_run(tiny_bundle, tmp_path, suffix):
    rows = []
    for k in range(3):
        array = np.random.default_rng(k).normal(100, 20, (16, 16)).astype(np.int16)
        rows.append(f"s{k}{suffix}")
        if suffix == ".nii":
            save_nifti(tmp_path / rows[-1], array)
        else:
            make_plane(positions()[0], number=k, stored=array).save_as(tmp_path / rows[-1])
    cohort = tmp_path / "cohort.csv"
    pd.DataFrame({"image": rows, "split": "test"}).to_csv(cohort, index=False)
    options = {"device": "cpu", "workers": 0}
    embed(tiny_bundle.directory, cohort, tmp_path / "z", **options)
    assert embed(tiny_bundle.directory, cohort, tmp_path / "z", **options).skipped
    data = bytearray((tmp_path / rows[1]).read_bytes())
    data[-9] ^= 4
    (tmp_path / rows[1]).write_bytes(data)
    with pytest.raises(ConfigError, match="was made of other scans, some were replaced"):
        embed(tiny_bundle.directory, cohort, tmp_path / "z", **options)


def test_a_dicom_slice_that_is_missing_doubled_or_empty_is_refused(tmp_path, record_property):
    noticed = 0
    for change in ("missing", "doubled", "empty"):
        folder = save_planes(tmp_path / change, positions(n=6))
        files = sorted(folder.iterdir())
        middle = next(file for file in files if b"1.2.3.3" in file.read_bytes())
        if change == "missing":
            middle.unlink()
        elif change == "doubled":
            (folder / "copy.dcm").write_bytes(middle.read_bytes())
        else:
            middle.write_bytes(b"")
        with pytest.raises(ScanError):
            read_scan(folder)
        noticed += 1
    record_property("figure", f"{noticed} of 3 broken DICOM series refused")
