"""Sample data: the table says what was drawn, and the images show it; MedMNIST files as cohorts."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny_bundles import contents

from monai_diffae.data.cohorts import read_cohort
from monai_diffae.data.samples import FACTORS, make_virtual_cohort, medmnist_to_cohort, virtual_cohort
from monai_diffae.data.samples.virtual_cohort import draw_patient, render_patient
from monai_diffae.errors import ConfigError

MIDDLE = {"head_size": 1.0, "tilt": 0.0, "contrast": 1.0, "slice_level": 15.0, "ventricles": 0.3}


def sweep(name, *, size=96, spatial_dims=2, patient=3):
    """Values from low to high, and the images, all else (also the displacement) equal."""
    factor = next(factor for factor in FACTORS if factor.name == name)
    values = np.linspace(factor.low, factor.high, 7)
    drawn = draw_patient(0, patient)
    patients = [replace(drawn, factors={**MIDDLE, name: float(value)}) for value in values]
    return values, [render_patient(p, size=size, spatial_dims=spatial_dims)[0].astype(float) for p in patients]


def dark_middle(image):
    """Voxels of fluid in the middle 80 x 100 mm."""
    width = image.shape[0]
    across, along = int(width * 40 / 224), int(width * 50 / 224)
    middle = image[width // 2 - across : width // 2 + across, width // 2 - along : width // 2 + along]
    return np.sum((middle > 0) & (middle < 140))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return make_virtual_cohort(tmp_path_factory.mktemp("cohort"), num_patients=12, size=32, seed=5)


def test_the_table_says_what_was_drawn(cohort, tmp_path):
    table = pd.read_csv(cohort)
    assert table.columns.tolist() == ["id", "patient", "image", "split", *(factor.name for factor in FACTORS)]
    assert len(table) == len(read_cohort(cohort)) == 12
    for factor in FACTORS:
        assert table[factor.name].between(factor.low, factor.high).all()
    row = table.iloc[7]
    patient = draw_patient(5, 7)
    assert {name: row[name] for name in patient.factors} == patient.factors
    image = nib.load(cohort.parent / row["image"])
    array, affine = render_patient(patient, size=32)
    np.testing.assert_array_equal(np.asarray(image.dataobj), array)
    np.testing.assert_allclose(image.affine, affine, atol=1e-4)
    assert "not patients" in (cohort.parent / "README.txt").read_text()
    again = make_virtual_cohort(tmp_path, num_patients=12, size=32, seed=5)
    assert contents(again.parent) == contents(cohort.parent)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_scanners_change_the_image_as_they_say_and_not_the_patient(spatial_dims, tmp_path):
    table = make_virtual_cohort(tmp_path, num_patients=6, size=24, spatial_dims=spatial_dims, num_scanners=3)
    rows = pd.read_csv(table)
    assert rows.groupby("patient")[["split", "head_size"]].nunique().max().tolist() == [1, 1]
    assert all(sorted(each) == list("ABC") for _, each in rows.groupby("patient")["scanner"])
    assert all(sorted(each) == list("ABC") for _, each in rows[:9].groupby("visit")["scanner"])
    plain = render_patient(draw_patient(0, 0), size=24, spatial_dims=spatial_dims)[0].astype(float)
    images = {row.scanner: nib.load(tmp_path / row.image) for row in rows[:3].itertuples()}
    assert images["C"].shape[:2] == (16, 16)
    assert images["C"].header.get_zooms()[0] == pytest.approx(224 / 16)
    first = images["A"].get_fdata()
    assert np.std((first - plain)[(plain > 20) & (plain < 230)]) == pytest.approx(2.55, rel=0.3)
    inside = plain > 50
    assert images["B"].get_fdata()[inside].mean() > first[inside].mean() + 10  # its exponent is smaller
    assert make_virtual_cohort(tmp_path, num_patients=6, size=24, spatial_dims=spatial_dims, num_scanners=3) == table


def test_a_second_call_writes_nothing_and_other_parameters_are_refused_unless_overwritten(tmp_path):
    table = make_virtual_cohort(tmp_path, num_patients=6, size=16)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert make_virtual_cohort(tmp_path, num_patients=6, size=16) == table
    with pytest.raises(ConfigError, match="num_patients 6 instead of 3"):
        make_virtual_cohort(tmp_path, num_patients=3, size=16)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    next((tmp_path / "images").iterdir()).unlink()
    make_virtual_cohort(tmp_path, num_patients=6, size=16)
    assert {path.name for path in (tmp_path / "images").iterdir()} == {p.name for p in before if p.suffix == ".nii"}
    make_virtual_cohort(tmp_path, num_patients=3, size=16, overwrite=True)
    with pytest.raises(ConfigError, match="^spatial_dims: must be 2 or 3, and val_fraction and test_fraction shares"):
        make_virtual_cohort(tmp_path / "other", num_patients=3, size=16, val_fraction=20, test_fraction=20)
    assert len(pd.read_csv(table)) == len(list((tmp_path / "images").iterdir())) == 3


@pytest.mark.parametrize("name", ["cohort.csv", "images/mine-1.nii"])
def test_files_of_the_user_are_never_replaced(tmp_path, name):
    mine = tmp_path / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    with pytest.raises(ConfigError, match="of your own"):
        make_virtual_cohort(tmp_path, num_patients=3, size=16, overwrite=True)
    assert contents(tmp_path) == {name: b"mine"}


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_ventricles_widen_and_the_head_stays(spatial_dims):
    strengths, images = sweep("ventricles", size=64, spatial_dims=spatial_dims)
    if spatial_dims == 3:
        # a volume is centred 10 mm below the level; its voxels are 3.5 mm
        images = [image[:, :, 34] for image in images]
    fluid = [dark_middle(image) for image in images]
    assert np.corrcoef(strengths, fluid)[0, 1] > 0.98
    assert fluid[-1] > 1.5 * fluid[0]
    areas = [np.sum(image > 20) for image in images]
    assert max(areas) < 1.01 * min(areas)


def test_axes_are_where_the_affine_says():
    """The template's voxel at the same world coordinates is the same tissue: no axis turned or swapped."""
    plain = replace(draw_patient(0, 0), factors={**MIDDLE, "ventricles": 0.0}, amplitudes_mm=np.zeros((12, 3), "f4"))
    template, to_index = virtual_cohort.read_template(0.0)
    for spatial_dims, size in ((2, 96), (3, 48)):
        image, affine = render_patient(plain, size=size, spatial_dims=spatial_dims)
        assert nib.aff2axcodes(affine) == ("R", "A", "S")
        voxels = np.argwhere(image > 100)
        places = np.rint(voxels @ affine[:3, :3].T + affine[:3, 3] + to_index.ravel()).astype(int)
        grey = template[tuple(places.T)]
        assert np.corrcoef(grey, image[tuple(voxels.T)])[0, 1] > 0.8
        # 55 mm before zero lies frontal lobe, 115 mm behind it nothing more
        inside = np.linalg.inv(affine) @ [12, 55, 15, 1]
        outside = np.linalg.inv(affine) @ [12, -115, 15, 1]
        assert image[tuple(np.rint(inside[:3]).astype(int))] > 50
        assert image[tuple(np.rint(outside[:3]).astype(int))] == 0
        if spatial_dims == 2:
            assert affine[2, 3] == pytest.approx(15.0)


COUNTS = {"train": 5, "val": 2, "test": 3}


def write_npz(path, shape=(28, 28), num_labels=1, **changes):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in COUNTS.items():
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        arrays[f"{split}_labels"] = rng.integers(0, 2, (count, num_labels), dtype=np.uint8)
    arrays.update(changes)
    np.savez(path, **{key: array for key, array in arrays.items() if array is not None})
    return path, arrays


@pytest.mark.parametrize(("shape", "num_labels"), [((28, 28), 1), ((28, 28, 3), 3), ((28, 28, 28), 1)])
def test_images_labels_and_splits(tmp_path, shape, num_labels):
    path, arrays = write_npz(tmp_path / "set.npz", shape, num_labels)
    csv = medmnist_to_cohort(path, tmp_path / "cohort")
    table = pd.read_csv(csv)
    labels = ["label"] if num_labels == 1 else ["label_0", "label_1", "label_2"]
    assert table.columns.tolist() == ["id", "image", "split", *labels]
    assert table["split"].value_counts().to_dict() == COUNTS
    assert table["id"].is_unique
    for split in COUNTS:
        rows = table[table["split"] == split]
        np.testing.assert_array_equal(rows[labels].to_numpy(), arrays[f"{split}_labels"])
        for image, relative in zip(arrays[f"{split}_images"], rows["image"], strict=True):
            file = csv.parent / relative
            stored = nib.load(file).dataobj if shape == (28, 28, 28) else Image.open(file)
            np.testing.assert_array_equal(np.asarray(stored), image)
    assert len(read_cohort(csv)) == 10


def test_a_file_whose_test_images_are_kept_aside(tmp_path):
    _, arrays = write_npz(tmp_path / "set.npz")
    np.savez(tmp_path / "part.npz", **{name: array for name, array in arrays.items() if not name.startswith("test")})
    table = pd.read_csv(medmnist_to_cohort(tmp_path / "part.npz", tmp_path / "cohort"))
    assert table["split"].tolist() == ["train"] * 5 + ["val"] * 2
