"""The command ``edit``: its images, differences, measurements and picture."""

import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from monai_diffae import edit, embed, load_bundle, reconstruct
from monai_diffae.apps.synthesis.fit_direction import fit_direction, read_direction
from monai_diffae.data.embeddings import read_embeddings, z_matrix
from monai_diffae.data.scans import read_scan
from monai_diffae.errors import CohortError, ConfigError

STRENGTHS = (-2, 0, 2, 4)
SHARES = ["change_of_brightness", "change_outside"]  # of cases without a mask


def corners(affine, k, shape):
    """Where the corners of a slice lie, in mm."""
    return {tuple(np.round(affine @ [i, j, k, 1], 3)) for i in (0, shape[0] - 1) for j in (0, shape[1] - 1)}


@pytest.fixture(scope="module")
def tilt(labelled, tmp_path_factory):
    path = tmp_path_factory.mktemp("tilt") / "tilt.json"
    fit_direction(labelled.embeddings, path, target="tilt")
    return path


@pytest.fixture(scope="module")
def options(labelled, tilt):
    return {
        "direction": labelled.direction, "strengths": STRENGTHS, "limit": 2, "watch": [tilt],
        "embeddings": labelled.embeddings, "device": "cpu",
    }  # fmt: skip


@pytest.fixture(scope="module")
def edited(labelled, options, tmp_path_factory):
    return edit(labelled.bundle, labelled.cohort, tmp_path_factory.mktemp("edited"), **options)


@pytest.fixture(scope="module")
def decoded(labelled, options, tmp_path_factory):
    """The same edits, written as the model decodes them."""
    return edit(labelled.bundle, labelled.cohort, tmp_path_factory.mktemp("decoded"), **options, detail="model")


@pytest.fixture(scope="module")
def table(edited):
    return pd.read_csv(edited.folder / "edits.csv")


def test_rows_columns_and_files(edited, table, labelled):
    ids = pd.read_csv(labelled.cohort)["id"][:2].tolist()
    measured = ["prediction", "achieved", "mse", "identity", "nearest_other", "is_itself", "drift_tilt"]
    assert list(table.columns) == ["id", "strength", "target", *measured, *SHARES]
    assert table["id"].tolist() == [name for name in ids for _ in STRENGTHS]
    assert table["strength"].tolist() == 2 * list(STRENGTHS)
    expected = sorted(f"{name}_{strength:+.2f}.nii.gz" for name in ids for strength in STRENGTHS)
    for folder in ("images", "differences"):
        assert sorted(file.name for file in (edited.folder / folder).iterdir()) == expected
    assert (edited.num_cases, edited.num_failed, edited.skipped) == (2, 0, False)
    assert Image.open(edited.folder / "edits.png").width > 100


def test_strength_0_of_the_model_is_the_plain_reconstruction_in_native_space(decoded, table, labelled, tmp_path):
    plain = reconstruct(labelled.bundle, labelled.cohort, tmp_path, limit=2, device="cpu").folder / "x_T"
    files = pd.read_csv(labelled.cohort).set_index("id")["image"]
    for name in table["id"].unique():
        made, expected, original = (
            nib.load(file)
            for file in (decoded.folder / "images" / f"{name}_+0.00.nii.gz", plain / f"{name}.nii.gz", files[name])
        )
        # whole numbers, as the virtual patients are; reconstruct decodes several cases at once
        assert np.abs(made.get_fdata() - expected.get_fdata()).max() <= 1
        # in the same place, whichever way round a slice is stored
        assert made.shape == original.shape == (16, 16, 1)
        assert corners(made.affine, 0, made.shape) == corners(original.affine, 0, original.shape)


def test_the_detail_changes_the_images_only_and_own_strength_0_is_the_scan_to_the_bit(edited, decoded, table, labelled):
    files = pd.read_csv(labelled.cohort).set_index("id")["image"]
    for name in table["id"].unique():
        made, original = (read_scan(f).array for f in (edited.folder / f"images/{name}_+0.00.nii.gz", files[name]))
        np.testing.assert_array_equal(made.squeeze(), original.squeeze())
    pd.testing.assert_frame_equal(pd.read_csv(decoded.folder / "edits.csv"), table)
    for file in (edited.folder / "differences").iterdir():
        assert file.read_bytes() == (decoded.folder / "differences" / file.name).read_bytes()
        own, coarse = (nib.load(each.folder / "images" / file.name).get_fdata() for each in (edited, decoded))
        assert (own != coarse).any()


def test_differences_are_between_the_decoded_images_and_exactly_0_at_0(decoded, table):
    for name in table["id"].unique():

        def read(folder, strength, name=name):
            return nib.load(decoded.folder / folder / f"{name}_{strength}.nii.gz").get_fdata()

        assert not read("differences", "+0.00").any()
        difference = read("differences", "+4.00")
        assert np.abs(difference).max() > 1
        np.testing.assert_allclose(read("images", "+4.00") - read("images", "+0.00"), difference, atol=1.01)
        assert nib.load(decoded.folder / "differences" / f"{name}_+4.00.nii.gz").get_data_dtype() == np.float32
    at_zero = table[table["strength"] == 0]
    assert not at_zero[["mse", "drift_tilt"]].to_numpy().any()
    assert (table[table["strength"] != 0]["mse"] > 0).all()


def test_the_target_rises_and_is_the_directions_own(edited, table, labelled):
    embedded = read_embeddings(labelled.embeddings).set_index("id")
    direction = read_direction(labelled.direction)
    monotone = []
    for name, rows in table.groupby("id"):
        assert (np.diff(rows["target"]) > 0).all()
        z_sem = z_matrix(embedded.loc[[name]])
        expected = direction.predict(np.concatenate([direction.move(z_sem, strength) for strength in STRENGTHS]))
        np.testing.assert_allclose(rows["target"], expected, atol=1e-4)
        monotone.append((np.diff(rows["prediction"]) > 0).all())
    assert edited.monotone == pytest.approx(np.mean(monotone))


def test_identity_and_drift_are_those_of_the_decoded_images(edited, decoded, table, labelled, tilt, tmp_path):
    """Recomputed from the written files alone, so up to their rounding to whole numbers."""
    names = table["id"] + table["strength"].map("_{:+.2f}.nii.gz".format)
    images = pd.DataFrame({"image": str(decoded.folder / "images") + "/" + names, "id": [f"e{i}" for i in table.index]})
    images.to_csv(tmp_path / "edited.csv", index=False)
    again = embed(labelled.bundle, tmp_path / "edited.csv", tmp_path / "e", device="cpu").path
    z_edited = read_embeddings(again).set_index("id")
    assert len(z_edited) == len(table)
    embedded = read_embeddings(labelled.embeddings)
    direction, watched = read_direction(labelled.direction), read_direction(tilt)
    mean, std = direction.statistics.mean, direction.statistics.std
    others = (z_matrix(embedded) - mean) / std
    for name, rows in table.groupby("id"):
        own_row = embedded["id"] == name
        own = others[own_row][0]
        ids = [f"e{i}" for i in rows.index]
        z = (z_matrix(z_edited.loc[ids]) - mean) / std
        gone = z - own
        across = np.linalg.norm(gone - np.outer(gone @ direction.weight, direction.pattern), axis=1)
        np.testing.assert_allclose(rows["identity"], across, atol=0.15)
        nearest = np.array([min(np.linalg.norm(other - row) for other in others[~own_row]) for row in z])
        np.testing.assert_allclose(rows["nearest_other"], nearest, atol=0.15)
        assert (rows["is_itself"] == (np.linalg.norm(gone, axis=1) < nearest)).all()
        for each, column in ((watched, "drift_tilt"), (direction, "achieved")):
            position = each.distance(z_matrix(z_edited.loc[ids])) / each.std
            np.testing.assert_allclose(rows[column], position - position[list(rows["strength"]).index(0)], atol=0.15)
    away = table[table["strength"] != 0]
    assert edited.achieved == pytest.approx(np.median(away["achieved"] / away["strength"]))


def test_pictures_of_odd_size_come_back_in_their_own_space(labelled, tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(256, size=(21, 13), dtype=np.uint8)).save(tmp_path / "odd.png")
    out = tmp_path / "png"
    options = {"direction": labelled.direction, "strengths": (2,), "device": "cpu"}
    edit(labelled.bundle, tmp_path / "odd.png", out, **options)
    names = sorted(file.name for file in (out / "images").iterdir())
    assert names == ["odd_+0.00.png", "odd_+2.00.png"]
    images = [Image.open(out / "images" / name) for name in names]
    assert all((image.size, image.mode) == ((13, 21), "L") for image in images)
    at_zero, moved = (np.asarray(image, float) for image in images)
    difference = read_scan(out / "differences" / "odd_+2.00.nii.gz").array.squeeze()
    np.testing.assert_array_equal(at_zero, np.asarray(Image.open(tmp_path / "odd.png")))
    assert ((moved == 0) | (moved == 255)).any()  # the file cannot hold all values, and the map is of those it holds
    difference = difference if difference.shape == moved.shape else difference.T
    assert np.abs(moved - at_zero - difference).max() <= 0.51


def test_what_does_not_fit_is_one_line(labelled, options, tmp_path):
    shutil.copy(labelled.embeddings, tmp_path / "no_key.parquet")  # goal R21: the case's own patient would be another
    read_embeddings(labelled.embeddings).head(1).to_parquet(tmp_path / "one.parquet")
    for changed, message in (
        ({"embeddings": tmp_path / "no_key.parquet"}, "the key of its patients is not beside it"),
        ({"captions": ["name"]}, "captions: there is no 'name'; choose from: id, .*tilt"),
        ({"strengths": (0.001,)}, "strengths: give different ones from -100 to 100"),
        ({"strengths": (0, 1e38)}, "strengths: give different ones from -100 to 100"),
        ({"embeddings": tmp_path / "one.parquet"}, "embeddings: the table has no two patients to compare"),
        ({"watch": [labelled.direction] * 2}, "watch: two directions are for the same label"),
    ):
        with pytest.raises((ConfigError, CohortError), match=message):
            edit(labelled.bundle, labelled.cohort, tmp_path / "out", **{**options, **changed})
    assert not (tmp_path / "out").exists()


def test_in_colour_and_of_what_the_encoder_sees(unusual, tmp_path, caplog):
    options = {"direction": unusual.direction, "strengths": (-2, 2), "limit": 2, "watch": [unusual.direction]}
    folder = edit(unusual.bundle, unusual.cohort, tmp_path, **options, device="cpu").folder
    assert len(list(folder.glob("*/*"))) == 12
    trained = load_bundle(unusual.bundle, "cpu")
    shape = (trained.image_shape[0], 20, 24)
    assert read_scan(folder / "images" / "case-1_+2.00.png").array.shape == shape
    difference = nib.load(folder / "differences" / "case-1_+2.00.nii.gz").get_fdata()
    assert difference.shape == ((20, 24, 1, 3) if shape[0] == 3 else (20, 24, 1))
    table = pd.read_csv(folder / "edits.csv")
    z_sem = z_matrix(read_embeddings(unusual.embeddings))[:2]
    target = read_direction(unusual.direction).predict(z_sem)
    np.testing.assert_allclose(table["target"][table["strength"] == 0], target, atol=1e-6)
    # an encoder of another image cannot say what became of the drawn one
    columns = [] if len(trained.image_keys) == 2 else ["prediction", "achieved", "mse", "identity", "drift_wide"]
    assert table.columns.tolist() == ["id", "strength", "target", *(columns or ["mse"]), *SHARES]
    assert ("the encoder sees encoder_image" in caplog.text) == (not columns)


def test_edits_tell_which_sequence_changed(sequences, tmp_path):
    options = {"direction": sequences.direction, "strengths": (-2, 2), "limit": 2, "device": "cpu"}
    result = edit(sequences.bundle, sequences.cohort, tmp_path / "out", **options)
    table = pd.read_csv(tmp_path / "out" / "edits.csv", index_col=["id", "strength"])
    case = load_bundle(sequences.bundle, "cpu").open(
        [sequences.cohort.parent / f"{name}_1.nii.gz" for name in ("T1", "FLAIR", "T1c")]
    )
    moved = read_direction(sequences.direction).move(case.z_sem.numpy(), 2.0)
    change = case.decode(torch.from_numpy(moved), case.x_T) - case.decode(case.z_sem, case.x_T)
    sizes = change[0].abs().mean(dim=(1, 2))
    shares = table.filter(like="share_")
    np.testing.assert_allclose(shares.loc["case-1", 2.0], sizes / sizes.sum(), atol=1e-4)
    assert shares.loc["case-1", 0.0].isna().all()
    means = shares.dropna().mean()
    text = ", ".join(f"{name.removeprefix('share_')} {share:.0%}" for name, share in means.items())
    assert f"share of the change: {text}" in list(result.lines())
    assert {name: result.figures[name] for name in means.index} == pytest.approx(means.to_dict())
    difference = nib.load(tmp_path / "out" / "differences" / "case-1_+2.00.nii.gz")
    assert difference.shape == (20, 24, 1, 3)
