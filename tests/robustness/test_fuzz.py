"""Goal R30: whatever is in a scan, table, datalist, configuration or direction, the error is one line of ours."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_files import make_plane, positions, save_enhanced
from fuzzing import (
    JSON_CHANGES,
    MUTATIONS,
    NASTY_TEXT,
    SCALARS,
    as_text,
    changed_json,
    fuzz,
    mutated,
    only_own_errors,
    peak_mb,
)  # fmt: skip
from hypothesis import strategies as st
from PIL import Image
from scan_files import save_nifti, values

from monai_diffae.apps.settings import Run
from monai_diffae.apps.synthesis.direction_files import read_direction
from monai_diffae.bundle import load_bundle
from monai_diffae.bundle.config import check_config
from monai_diffae.bundle.config_values import check_dimensions, check_values
from monai_diffae.data.cohorts import assign_splits, read_cohort
from monai_diffae.data.scans import read_geometry, read_scan

pytestmark = pytest.mark.goal(id="R30")

PROFILES = [
    pytest.param(0.0, id="short"),
    pytest.param(60.0, id="long", marks=pytest.mark.slow),  # five tests: five minutes in all
]
LARGEST_MB = 500


def _picture(path: Path) -> None:
    Image.fromarray(values(24, 20).astype(np.uint8)).save(path)


def _image(path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(values(5, 6, 7).astype(np.int16)), str(path), path.name.startswith("packed"))


FORMATS = {
    "a.nii": save_nifti, "a.nii.gz": save_nifti, "a.png": _picture, "a.jpg": _picture, "a.nrrd": _image,
    "packed.nrrd": _image, "a.mha": _image, "packed.mha": _image, "a.mhd": _image,
    "a.dcm": lambda path: make_plane(positions()[0]).save_as(path),
    "frames.dcm": lambda path: save_enhanced(path, positions()),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def _report(record_property, what: str, count: int, refused: int, before: float) -> None:
    grown = peak_mb() - before
    record_property("figure", f"{what}: {count} inputs, {refused} refused, 0 other errors, {grown:.0f} MB more memory")
    assert count >= 50
    assert grown < LARGEST_MB


@pytest.mark.parametrize("seconds", PROFILES)
def test_scans(tmp_path, seconds, record_property):
    files = {}
    for name, make in FORMATS.items():
        (tmp_path / "good").mkdir(exist_ok=True)
        make(tmp_path / "good" / name)
        files[name] = (tmp_path / "good" / name).read_bytes()
        assert read_scan(tmp_path / "good" / name).array.size
    for voxels in (tmp_path / "good").glob("*raw"):
        (tmp_path / voxels.name).write_bytes(voxels.read_bytes())
    refused = 0

    def check(example):
        nonlocal refused
        name, mutations = example
        path = tmp_path / name
        path.write_bytes(mutated(files[name], mutations))

        def read():
            scan = read_scan(path)
            assert scan.array.dtype == np.float32
            assert np.isfinite(scan.array).all()
            assert np.isfinite(scan.affine).all()

        refused += not only_own_errors(read)
        only_own_errors(lambda: read_geometry(path))

    before = peak_mb()
    count = fuzz(check, st.tuples(st.sampled_from(sorted(FORMATS)), MUTATIONS), examples=300, seconds=seconds)
    _report(record_property, f"{len(FORMATS)} formats", count, refused, before)


TABLE = b"id,image,patient,split,age\na,a.nii,p1,train,41\nb,b.nii,p2,val,52\nc,c.nii,p3,test,\n"
CELLS = st.one_of(
    NASTY_TEXT,
    st.sampled_from(["a.nii", "b.nii", "a", "b", "train", "val", "test", "p1", "41", "image", "id", "split"]),
)
ROWS = st.lists(st.lists(CELLS, max_size=6), max_size=6).map(
    lambda rows: "\n".join(",".join(row) for row in rows).encode("utf-8", errors="surrogatepass")
)


def _cohort_of(folder: Path, name: str) -> Path:
    for scan in ("a.nii", "b.nii", "c.nii"):
        save_nifti(folder / scan)
    return folder / name


@pytest.mark.parametrize("seconds", PROFILES)
def test_tables(tmp_path, seconds, record_property):
    path, refused = _cohort_of(tmp_path, "cohort.csv"), 0

    def check(content):
        nonlocal refused
        path.write_bytes(content)
        refused += not only_own_errors(lambda: assign_splits(read_cohort(path)))

    changed = MUTATIONS.map(lambda mutations: mutated(TABLE, mutations))
    header = ROWS.map(lambda rows: b"id,image,patient,split\n" + rows)
    before = peak_mb()
    count = fuzz(check, st.one_of(changed, ROWS, header), examples=150, seconds=seconds)
    _report(record_property, "tables", count, refused, before)


DATALIST = {
    "training": [{"image": "a.nii", "id": "a", "age": 41}, {"image": ["b.nii"], "patient": "p2"}],
    "validation": [{"image": "c.nii"}], "description": "x",
}  # fmt: skip


@pytest.mark.parametrize("seconds", PROFILES)
def test_datalists(tmp_path, seconds, record_property):
    path, refused = _cohort_of(tmp_path, "datalist.json"), 0

    def check(content):
        nonlocal refused
        path.write_bytes(content)
        refused += not only_own_errors(lambda: assign_splits(read_cohort(path)))

    changed = JSON_CHANGES.map(lambda changes: as_text(changed_json(DATALIST, changes)))
    broken = MUTATIONS.map(lambda mutations: mutated(as_text(DATALIST), mutations))
    before = peak_mb()
    count = fuzz(check, st.one_of(changed, broken), examples=150, seconds=seconds)
    _report(record_property, "datalists", count, refused, before)


@pytest.mark.parametrize("seconds", PROFILES)
def test_directions(labelled, tmp_path, seconds, record_property):
    path, refused = tmp_path / "direction.json", 0
    whole = json.loads(labelled.direction.read_text())

    def check(content):
        nonlocal refused
        path.write_bytes(content)
        refused += not only_own_errors(lambda: read_direction(path))

    changed = JSON_CHANGES.map(lambda changes: as_text(changed_json(whole, changes)))
    broken = MUTATIONS.map(lambda mutations: mutated(as_text(whole), mutations))
    before = peak_mb()
    count = fuzz(check, st.one_of(changed, broken), examples=150, seconds=seconds)
    _report(record_property, "directions", count, refused, before)


@pytest.mark.parametrize("seconds", PROFILES)
def test_configurations(tiny_bundle, seconds, record_property):
    train = json.loads((tiny_bundle.directory / "configs" / "train.json").read_text())
    model = json.loads((tiny_bundle.directory / "models" / "config.json").read_text())
    refused, number = 0, 0

    def check(example):
        nonlocal refused, number
        key, value, changes = example
        config = changed_json(train, changes) if changes else {**train, key: value}

        def checked():
            check_dimensions(config)
            check_config(config, known=set(train))
            check_values(config)

        if isinstance(config, dict):
            refused += not only_own_errors(checked)
        number += 1
        if number % 10 == 0:  # a bundle takes longer
            only_own_errors(lambda: load_bundle(tiny_bundle.directory, "cpu", {key: value}))
        assert Run(overrides={key: value}).overrides

    texts = st.text("[]{},.:0123456789e-'ab", max_size=12)  # no expressions: users may run code of their own
    plain = st.one_of(
        SCALARS.filter(lambda v: not isinstance(v, str)), texts, st.lists(st.integers(-2, 32), max_size=4)
    )
    keys = st.one_of(st.sampled_from(sorted({*train, *model, "inferer#steps", "network_def#unet"})), texts)
    changes = st.lists(
        st.tuples(st.sampled_from(["set", "delete", "wrap"]), st.lists(st.integers(0, 99), max_size=2), plain),
        max_size=2,
    )
    before = peak_mb()
    count = fuzz(check, st.tuples(keys, plain, changes), examples=100, seconds=seconds)
    _report(record_property, "configurations", count, refused, before)
