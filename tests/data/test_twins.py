import io
from functools import cache

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scan_files import shared

from monai_diffae.data import twins
from monai_diffae.data.fingerprints import fingerprint, scan_fingerprint
from monai_diffae.data.samples import make_virtual_cohort
from monai_diffae.data.scans import read_scan
from monai_diffae.data.twins import TwinGroup, find_twins


def saved_again(picture):
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=40)
    return Image.open(stream)


def cropped(picture):
    width, height = picture.size
    return picture.crop((width // 60, height // 60, width - width // 60, height - height // 60))


CHANGES = {
    "saved again": saved_again,
    "smaller": lambda picture: picture.resize((70, 80), Image.Resampling.BILINEAR),
    "larger": lambda picture: picture.resize((300, 280), Image.Resampling.BICUBIC),
    "brighter": lambda picture: picture.point(lambda value: value * 1.2 + 10),
    "gamma": lambda picture: picture.point(lambda value: 255 * (value / 255) ** 0.8),
    "cropped": cropped,
}


@cache
def xrays(count):
    folder = shared("cxr_pneumonia_224")
    table = pd.read_csv(folder / "labels.csv").iloc[::3].head(count)
    return [Image.open(folder / file).convert("L") for file in table["file"]], list(table["patient_key"])


def as_fingerprint(picture):
    return fingerprint(np.asarray(picture, np.float32)[None])


@pytest.mark.parametrize("change", CHANGES)
def test_changed_xrays_are_found_and_no_others(change):
    pictures, patients = xrays(150)
    changed = [CHANGES[change](picture) for picture in pictures[:20]]
    groups = find_twins([*map(as_fingerprint, pictures + changed)], [*patients, *(f"new {i}" for i in range(20))])
    expected = {(i, 150 + i) for i in range(20)}
    found = {group.members for group in groups}
    assert found <= expected
    assert len(found) >= 19
    assert not any(group.is_identical for group in groups)


def test_different_hippocampi_are_no_twins():
    files = sorted((shared("hippocampus_msd") / "images").glob("*.nii.gz"))[:60]
    fingerprints = [scan_fingerprint(read_scan(file)) for file in files]
    assert find_twins(fingerprints, [file.name for file in files]) == []


@pytest.mark.parametrize(("spatial_dims", "size", "count"), [(2, 48, 150), (3, 24, 20)])
def test_deformed_copies_of_one_head_are_no_twins(tmp_path, spatial_dims, size, count):
    table = make_virtual_cohort(tmp_path / "scans", num_patients=count, size=size, spatial_dims=spatial_dims)
    scans = [read_scan(table.parent / image) for image in pd.read_csv(table)["image"]]
    noisy = scans[0].array + np.random.default_rng(0).normal(0, 0.01 * np.ptp(scans[0].array), scans[0].array.shape)
    fingerprints = [*map(scan_fingerprint, scans), fingerprint(noisy.astype(np.float32))]
    groups = find_twins(fingerprints, [str(position) for position in range(count + 1)])
    assert groups == [TwinGroup((0, count), is_identical=False)]


def test_copies_are_one_group_and_identical_also_within_a_patient():
    scans = list(np.random.default_rng(0).random((5, 1, 40, 40), np.float32))
    copies = [fingerprint(scan) for scan in [*scans, scans[3], scans[1], scans[3]]]
    groups = [TwinGroup((1, 6), is_identical=True), TwinGroup((3, 5, 7), is_identical=True)]
    assert find_twins(copies, ["one patient"] * 8) == groups


def test_near_twins_of_one_patient_are_not_sought():
    scan = np.random.default_rng(0).random((1, 40, 40), np.float32)
    pair = [fingerprint(scan), fingerprint(scan + 1)]
    assert find_twins(pair, ["a", "a"]) == []
    assert find_twins(pair, ["a", "b"]) == [TwinGroup((0, 1), is_identical=False)]


def test_empty_slices_are_no_twins():
    empty = fingerprint(np.zeros((1, 20, 20), np.float32))
    assert find_twins([empty, empty], ["a", "b"]) == []


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_scans(count):
    scans = np.random.default_rng(0).random((count, 1, 20, 20), np.float32)
    assert find_twins([fingerprint(scan) for scan in scans], [str(i) for i in range(count)]) == []


def test_of_very_many_scans_only_identical_ones_are_found(monkeypatch, caplog):
    monkeypatch.setattr(twins, "MOST_COMPARED", 2)
    scan = np.random.default_rng(0).random((1, 40, 40), np.float32)
    with caplog.at_level("INFO", "monai_diffae"):
        groups = find_twins([fingerprint(each) for each in (scan, scan + 1, scan, scan + 2)], ["a", "b", "c", "d"])
    assert groups == [TwinGroup((0, 2), is_identical=True)]
    assert "3 scans are too many" in caplog.text
