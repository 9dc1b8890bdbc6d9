"""Goals R5 and R30: damage to a file is noticed, and whatever is in it, the error is one line of ours."""

import json
import logging
from collections import Counter
from functools import partial

import fuzzing
import numpy as np
import pytest
import SimpleITK as sitk
from complaints import write_unchecked
from dicom_files import make_plane, positions, save_enhanced
from fuzzing import MUTATIONS, changed_json, fuzz, mutated, only_own_errors
from hypothesis import strategies as st
from PIL import Image
from scan_files import grown_mb, save_nifti, values

from monai_diffae import Run, load_bundle
from monai_diffae.apps.synthesis.fit_direction import read_direction
from monai_diffae.bundle.config import check_config, check_dimensions, check_rules
from monai_diffae.bundle.model_file import read_model
from monai_diffae.data import Case, read_cohort
from monai_diffae.data.cases import assign_splits
from monai_diffae.data.inspection.survey import read_case
from monai_diffae.data.scans import read_geometry, read_scan


def _picture(path):
    Image.fromarray(values(24, 20).astype(np.uint8)).save(path)


def _image(path):
    sitk.WriteImage(sitk.GetImageFromArray(values(5, 6, 7).astype(np.int16)), str(path), path.name.startswith("packed"))


FORMATS = {
    "a.nii": save_nifti, "a.nii.gz": save_nifti, "a.png": _picture, "a.jpg": _picture, "a.nrrd": _image,
    "packed.nrrd": _image, "a.mha": _image, "packed.mha": _image, "a.mhd": _image,
    "a.dcm": lambda path: make_plane(positions()[0]).save_as(path),
    "a.tif": _picture, "pages.tif": _image, "a.bmp": _picture, "a.mgh": save_nifti, "a.mgz": save_nifti,
    "frames.dcm": lambda path: save_enhanced(path, positions()),
}  # fmt: skip
HASHED = [
    "a.tif",
    "pages.tif",
    "a.mgz",
    "a.nii",
    "a.nii.gz",
    "a.png",
    "a.nrrd",
    "packed.nrrd",
    "a.mha",
    "packed.mha",
    "a.dcm",
]
CHECKED = {"a.nii.gz", "a.mgz", "a.png"}
"""Formats whose checksums cover the whole file: the reader itself refuses every flip that changes a voxel."""


# -- R5: the reader refuses a damaged file, or the hash that verify and embed keep is another one ---------------------


@pytest.mark.goal(id="R5")
@pytest.mark.parametrize(("flips", "cuts"), [(8, 4), pytest.param(200, 20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", HASHED)
def test_flipped_bits_and_cuts_are_noticed(tmp_path, name, flips, cuts, record_property):
    path = tmp_path / name
    FORMATS[name](path)
    data, whole, case = path.read_bytes(), read_scan(path).array, Case("a", {"image": path}, "a")
    before, rng = read_case(case).content, np.random.default_rng(0)

    def check_reading(damage, keeps_the_image):
        reading = read_case(case)
        if reading.error:
            assert len(reading.error) <= 200
            refused[damage] += 1
            return
        assert reading.content != before
        if keeps_the_image:
            np.testing.assert_array_equal(read_scan(path).array, whole)

    refused = Counter()
    for byte, bit in zip(rng.integers(0, len(data), flips), rng.integers(0, 8, flips), strict=True):
        flipped = bytearray(data)
        flipped[byte] ^= 1 << int(bit)
        path.write_bytes(flipped)
        check_reading("flips", keeps_the_image=name in CHECKED)
    for length in np.linspace(0, len(data) - 1, cuts).astype(int):
        path.write_bytes(data[:length])
        check_reading("cuts", keeps_the_image=True)  # unless it is refused, it is cut behind the last pixel
    record_property("figure", f"{name}: the reader refuses {dict(refused)}, the hash notices the others")
    assert refused["cuts"] >= cuts - 1


# -- R30: random damage ------------------------------------------------------------------------------------------------


def damaged_scans(folder, request):
    """Strategy and check for scans of all formats."""
    (folder / "good").mkdir()
    for name, make in FORMATS.items():
        make(folder / "good" / name)
        assert read_scan(folder / "good" / name).array.size
    files = {name: (folder / "good" / name).read_bytes() for name in FORMATS}
    for voxels in (folder / "good").glob("*raw"):
        (folder / voxels.name).write_bytes(voxels.read_bytes())

    def check(example):
        name, mutations = example
        path = folder / name
        path.write_bytes(mutated(files[name], mutations))

        def read():
            scan = read_scan(path)
            assert scan.array.dtype == np.float32
            assert np.isfinite(scan.array).all()
            assert np.isfinite(scan.affine).all()

        only_own_errors(lambda: read_geometry(path))
        return only_own_errors(read)

    return st.tuples(st.sampled_from(sorted(FORMATS)), MUTATIONS), check


def _check_of(path, read):
    """Writes a file's content, and reads it."""

    def check(content):
        path.write_bytes(content)
        return only_own_errors(lambda: read(path))

    return check


def _damaged_json(whole):
    changed = fuzzing.JSON_CHANGES.map(lambda changes: fuzzing.as_text(changed_json(whole, changes)))
    return st.one_of(changed, MUTATIONS.map(lambda mutations: mutated(fuzzing.as_text(whole), mutations)))


def damaged_tables(folder, request):
    for scan in ("a.nii", "b.nii", "c.nii"):
        save_nifti(folder / scan)
    table = b"id,image,patient,split,age\na,a.nii,p1,train,41\nb,b.nii,p2,val,52\nc,c.nii,p3,test,\n"
    words = ["a.nii", "b.nii", "a", "b", "train", "val", "test", "p1", "41", "image", "id", "split"]
    cells = st.one_of(fuzzing.NASTY_TEXT, st.sampled_from(words))
    rows = st.lists(st.lists(cells, max_size=6), max_size=6).map(
        lambda rows: "\n".join(",".join(row) for row in rows).encode("utf-8", errors="surrogatepass")
    )
    changed = MUTATIONS.map(lambda mutations: mutated(table, mutations))
    header = rows.map(lambda rows: b"id,image,patient,split\n" + rows)
    check = _check_of(folder / "cohort.csv", lambda path: assign_splits(read_cohort(path)))
    return st.one_of(changed, rows, header), check


def damaged_datalists(folder, request):
    for scan in ("a.nii", "b.nii", "c.nii"):
        save_nifti(folder / scan)
    whole = {
        "training": [{"image": "a.nii", "id": "a", "age": 41}, {"image": ["b.nii"], "patient": "p2"}],
        "validation": [{"image": "c.nii"}], "description": "x",
    }  # fmt: skip
    check = _check_of(folder / "datalist.json", lambda path: assign_splits(read_cohort(path)))
    return _damaged_json(whole), check


def damaged_directions(folder, request):
    whole = json.loads(request.getfixturevalue("labelled").direction.read_text())
    return _damaged_json(whole), _check_of(folder / "direction.json", read_direction)


def damaged_configurations(folder, request):
    bundle = request.getfixturevalue("tiny_bundle").directory
    train = json.loads((bundle / "configs" / "train.json").read_text())
    described = read_model(bundle / "models" / "model.safetensors").description
    number = 0

    def check(example):
        nonlocal number
        key, value, changes = example
        config = changed_json(train, changes) if changes else {**train, key: value}

        def checked():
            check_dimensions(config)
            check_config(config, known=set(train))
            check_rules(config)

        number += 1
        if number % 10 == 0:  # a bundle takes longer
            only_own_errors(lambda: load_bundle(bundle, "cpu", {key: value}))
        assert Run(overrides={key: value}).overrides
        return not isinstance(config, dict) or only_own_errors(checked)

    texts = st.text("[]{},.:0123456789e-'ab", max_size=12)  # no expressions: users may run code of their own
    plain = st.one_of(
        fuzzing.SCALARS.filter(lambda v: not isinstance(v, str)), texts, st.lists(st.integers(-2, 32), max_size=4)
    )
    keys = st.one_of(st.sampled_from(sorted({*train, *described, "inferer#steps", "network_def#unet"})), texts)
    changes = st.tuples(st.sampled_from(["set", "delete"]), st.lists(st.integers(0, 99), max_size=2), plain)
    return st.tuples(keys, plain, st.lists(changes, max_size=2)), check


def damaged_models(folder, request):
    """Any other byte is noticed; so is a description that cannot be used, though its checksum is right."""
    file = request.getfixturevalue("tiny_bundle").directory / "models" / "model.safetensors"
    whole, data, path = read_model(file), file.read_bytes(), folder / "model.safetensors"

    def check(example):
        mutations, changes = example
        if changes is None:
            path.write_bytes(mutated(data, mutations))
            is_read = only_own_errors(lambda: read_model(path))
            assert not is_read or path.read_bytes() == data
            return is_read
        description = changed_json(whole.description, changes)
        write_unchecked(path, whole, description)
        return only_own_errors(lambda: load_bundle(path, "cpu"))

    return st.tuples(MUTATIONS, st.one_of(st.none(), fuzzing.JSON_CHANGES)), check


@pytest.mark.goal(id="R30")
@pytest.mark.parametrize(
    ("examples", "seconds"),
    [(40, 0.0), pytest.param(300, 60.0, marks=pytest.mark.slow)],  # six inputs: six minutes in all
    ids=["short", "long"],
)
@pytest.mark.parametrize(
    "damaged",
    [damaged_scans, damaged_tables, damaged_datalists, damaged_directions, damaged_configurations, damaged_models],
)
def test_random_damage_is_one_line_of_ours(tmp_path, request, record_property, damaged, examples, seconds):
    inputs, check = damaged(tmp_path, request)
    accepted, what = [], damaged.__name__.replace("_", " ")
    logging.disable(logging.CRITICAL)
    try:
        grown = grown_mb(
            partial(fuzz, lambda example: accepted.append(check(example)), inputs, examples=examples, seconds=seconds)
        )
    finally:
        logging.disable(logging.NOTSET)
    count, refused = len(accepted), accepted.count(False)
    record_property("figure", f"{what}: {count} inputs, {refused} refused, 0 other errors, {grown:.0f} MB more memory")
    assert count >= examples
    assert refused
    assert grown < 500
