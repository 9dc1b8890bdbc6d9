"""The encoder as a scikit-learn transformer."""

import pickle
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.validation import validate_data
from tiny_bundles import rewrite

from monai_diffae import DiffAEEncoder, embed, load_bundle
from monai_diffae.data.cohorts import read_cohort
from monai_diffae.data.embeddings import z_columns, z_matrix
from monai_diffae.errors import ConfigError, ScanError


class EncoderOfTables(DiffAEEncoder):
    """Accepts tables with any number of columns and any values, as scikit-learn's checks make them.

    Rows are padded to the image's size and scaled into its range; everything else is as in the class itself.
    """

    def _images(self, X, trained, *, reset):
        numbers = validate_data(self, X, reset=reset, dtype=np.float32)
        size = int(np.prod(trained.image_shape))
        padded = np.pad(np.tanh(numbers), ((0, 0), (0, size - numbers.shape[1])))
        return padded.reshape(-1, *trained.image_shape)


@pytest.mark.slow
@parametrize_with_checks([EncoderOfTables()])
def test_scikit_learns_own_checks(estimator, check, tiny_bundle):
    check(estimator.set_params(bundle=tiny_bundle.directory, device="cpu"))


@pytest.fixture(params=["2d", "3d"])
def cohort(request, labelled, tiny_bundle_3d, tmp_path):
    """A bundle, its cohort with absolute paths, and the table that embed makes from it, in the cohort's order."""
    directory = {"2d": labelled.bundle, "3d": tiny_bundle_3d.directory}[request.param]
    file = {"2d": labelled.cohort, "3d": tiny_bundle_3d.cohort}[request.param]
    table = pd.read_csv(file)
    table["image"] = [str(file.parent / image) for image in table["image"]]
    embedded = pd.read_parquet(embed(directory, file, tmp_path / "embedded", device="cpu").path)
    assert embedded["id"].tolist() == table["id"].astype(str).tolist()
    return directory, table, embedded


@pytest.fixture
def encoder(labelled):
    return DiffAEEncoder(labelled.bundle, device="cpu")


@pytest.fixture
def table(labelled):
    return pd.read_csv(labelled.cohort)


def images_of(directory, paths):
    trained = load_bundle(directory, "cpu")
    return np.stack([trained.preprocessing({"image": path})["image"].numpy() for path in paths])


def test_z_sem_of_paths_equal_those_of_embed_in_the_order_of_the_rows(cohort):
    directory, table, embedded = cohort
    order = np.random.default_rng(0).permutation(len(table))
    for workers in (0, 1):
        encoder = DiffAEEncoder(directory, device="cpu", workers=workers, batch_size=5)
        z = encoder.fit_transform(table["image"].iloc[order])
        assert z.dtype == np.float32
        np.testing.assert_array_equal(z, z_matrix(embedded)[order])
    assert encoder.get_feature_names_out().tolist() == z_columns(embedded)


def test_z_sem_of_arrays_equal_those_of_the_scans(cohort):
    directory, table, embedded = cohort
    images = images_of(directory, table["image"])
    encoder = DiffAEEncoder(directory, device="cpu").fit(images)
    assert encoder.n_features_in_ == images[0].size
    for X in (images, images[:, 0], images.reshape(len(images), -1), torch.from_numpy(images), images.tolist()):
        np.testing.assert_array_equal(encoder.transform(X), z_matrix(embedded))


def test_kinds_of_paths(encoder, table):
    table = table.iloc[:3]
    paths = table["image"].tolist()
    expected = encoder.fit_transform(paths)
    for X in ([Path(path) for path in paths], np.array(paths), table["image"], table, table.assign(slice=np.nan)):
        np.testing.assert_array_equal(encoder.fit(X).transform(X), expected)
    renamed = table.assign(other="text").rename(columns={"image": "file"})
    columns = clone(encoder).set_params(columns={"image": "file"})
    np.testing.assert_array_equal(columns.fit_transform(renamed), expected)
    repeated = encoder.transform([paths[0], paths[0], paths[1]])
    np.testing.assert_array_equal(repeated, expected[[0, 0, 1]])


def test_slices_of_volumes(labelled, tmp_path):
    volume = np.random.default_rng(0).gamma(2, 50, size=(12, 13, 10)).astype(np.float32)
    nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / "v.nii")
    embedded = pd.read_parquet(embed(labelled.bundle, tmp_path / "v.nii", tmp_path / "o", device="cpu").path)
    X = pd.DataFrame({"image": str(tmp_path / "v.nii"), "k": [int(name[-3:]) for name in embedded["id"]]})
    encoder = DiffAEEncoder(labelled.bundle, device="cpu", columns={"slice": "k"})
    np.testing.assert_array_equal(encoder.fit_transform(X), z_matrix(embedded))
    with pytest.raises(ScanError, match=r"row 0, v\.nii: a 3D volume .* expected a 2D image"):
        encoder.transform(X["image"])


def test_two_modalities_and_colour(unusual, tmp_path):
    table = pd.read_csv(unusual.cohort)
    keys = [key for key in ("image", "encoder_image") if key in table]
    table[keys] = table[keys].map(lambda file: str(unusual.cohort.parent / file))
    encoder = DiffAEEncoder(unusual.bundle, device="cpu")
    np.testing.assert_array_equal(encoder.fit_transform(table), z_matrix(pd.read_parquet(unusual.embeddings)))
    if len(keys) == 2:
        with pytest.raises(ConfigError, match="X: the bundle also reads 'encoder_image'; give a DataFrame"):
            encoder.fit(table["image"])


def test_pipelines_and_cross_validation(encoder, table):
    pipeline = make_pipeline(encoder, StandardScaler(), LogisticRegression())
    alone = make_pipeline(StandardScaler(), LogisticRegression())
    z, y = encoder.fit_transform(table["image"]), table["wide"]
    expected = cross_val_score(alone, z, y, cv=3)
    np.testing.assert_array_equal(cross_val_score(pipeline, table["image"], y, cv=3), expected)
    beside = ColumnTransformer([("z", clone(encoder), ["image"]), ("label", "passthrough", ["head_size"])])
    np.testing.assert_allclose(beside.fit_transform(table), np.column_stack([z, table["head_size"]]))


def test_pickles_and_clones_carry_the_path_and_no_weights(encoder, table):
    expected = encoder.fit_transform(table["image"])
    content = pickle.dumps(encoder)
    assert len(content) < 2000
    again = pickle.loads(content)
    assert again.get_params() == encoder.get_params()
    np.testing.assert_array_equal(again.transform(table["image"]), expected)
    copy = clone(encoder)
    with pytest.raises(NotFittedError):
        copy.transform(table["image"])
    with pytest.raises(NotFittedError):
        copy.get_feature_names_out()
    np.testing.assert_array_equal(copy.fit_transform(table["image"]), expected)


@pytest.fixture
def own(labelled, tmp_path):
    """A copy of the bundle, to change."""
    return shutil.copytree(labelled.bundle, tmp_path / "own", ignore=shutil.ignore_patterns("cache"))


def test_a_bundle_that_has_changed_since_fit_is_refused(own, table):
    encoder = DiffAEEncoder(own, device="cpu").fit(table["image"])
    before, content = encoder.transform(table["image"]), pickle.dumps(encoder)

    rewrite(own, percentiles=[10, 90])
    for changed in (encoder, pickle.loads(content)):
        with pytest.raises(ConfigError, match="^own: model changed since the encoder was fitted; fit it again"):
            changed.transform(table["image"])
    assert not np.array_equal(encoder.fit_transform(table["image"]), before)


def test_bad_scans_raise_an_error_that_names_the_first_or_are_rows_of_nan(encoder, table, tmp_path):
    (tmp_path / "broken.nii").write_bytes(b"no scan")
    expected, paths = encoder.fit_transform(table["image"]), table["image"].tolist()
    paths[1], paths[3] = str(tmp_path / "broken.nii"), str(tmp_path / "missing.nii")
    first = r"^X: 2 of 12 scans cannot be used; the first is row 1, broken\.nii: this.*$"
    with pytest.raises(ScanError, match=first) as error:
        encoder.fit(paths).transform(paths)
    assert str(tmp_path) not in str(error.value)
    encoder.set_params(on_bad_scan="nan").set_output(transform="pandas")
    with pytest.warns(UserWarning, match=r"^X: 2 of 12 scans cannot be used and are rows of NaN; the first is row 1"):
        z = encoder.fit_transform(pd.Series(paths, index=list("abcdefghijkl")))
    assert z.index[z.isna().all(axis=1)].tolist() == ["b", "d"]
    np.testing.assert_array_equal(z.dropna(), np.delete(expected, [1, 3], axis=0))


def test_X_with_neither_paths_nor_images_is_refused_at_fit_and_transform(encoder, table):
    fitted = clone(encoder).fit(table["image"])
    for X, message in (
        (np.zeros((8, 64)), "rows have 64 values, but the bundle's images are 1 x 16 x 16; give images of"),
        (np.zeros((2, 3, 16, 16)), "images are 3 x 16 x 16, but the bundle's are 1 x 16 x 16; give images of"),
        (np.full((2, 16, 16), 255), "values range from 255 to 255, but the model's from -1 to 1; scale them, or"),
        ("a.nii", "paths have 0 dimensions; give one path per row"),
    ):
        for refusing in (clone(encoder).fit, fitted.transform):
            with pytest.raises(ConfigError, match=f"^X: {message}"):
                refusing(X)
    with pytest.raises(ConfigError, match="^X: images are 3 x 16 x 16"):  # not numbers of features
        clone(encoder).fit(np.zeros((2, 16, 16))).transform(np.zeros((2, 3, 16, 16)))
    for columns, message in (({"imag": "age"}, "columns: 'imag' is not one of"), ({"image": "no"}, "X: has no column")):
        with pytest.raises(ConfigError, match=f"^{message}"):
            clone(encoder).set_params(columns=columns).fit(table)


def test_overrides_are_those_of_embed(labelled, table, tmp_path):
    overrides = {"percentiles": [10, 90]}
    embedded = embed(labelled.bundle, labelled.cohort, tmp_path / "o", device="cpu", overrides=overrides)
    encoder = DiffAEEncoder(labelled.bundle, device="cpu", overrides=overrides, workers=None)
    z = encoder.fit_transform(table["image"])
    np.testing.assert_array_equal(z, z_matrix(pd.read_parquet(embedded.path)))
    assert not np.array_equal(z, z_matrix(pd.read_parquet(labelled.embeddings)))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(encoder)).transform(table["image"]), z)
    with pytest.raises(ConfigError):
        encoder.set_params(overrides={}).transform(table["image"])


def test_a_data_frame_may_have_a_column_per_sequence(sequences):
    cases = read_cohort(sequences.cohort)
    table = pd.DataFrame([case.sequences for case in cases])
    z_sem = DiffAEEncoder(sequences.bundle, device="cpu").fit_transform(table)
    np.testing.assert_array_equal(z_sem, pd.read_parquet(sequences.embeddings).filter(regex="^z_").to_numpy())
