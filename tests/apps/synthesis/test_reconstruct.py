"""The command ``reconstruct``."""

import json
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from dicom_files import make_plane
from PIL import Image
from tiny_bundles import rewrite

from monai_diffae import load_bundle, reconstruct
from monai_diffae.errors import CohortError, ConfigError
from monai_diffae.metrics import noise_statistics

# what tests/conftest.py says of the tiny bundle, and what the bundle's config says
DEFAULTS = {"solver": "adams", "steps": 3, "invert_steps": 4, "inversion": "implicit", "spacing": "logsnr"}


@pytest.fixture(scope="module")
def both(tiny_bundle, tmp_path_factory):
    out = tmp_path_factory.mktemp("both")
    options = {"steps": 3, "limit": 5, "device": "cpu", "batch_size": 2}
    return reconstruct(tiny_bundle.directory, tiny_bundle.cohort, out, mode="both", **options), options


def test_both_modes_are_written_with_their_errors(both):
    result, _ = both
    table = pd.read_csv(result.folder / "reconstructions.csv")
    metrics = {f"{metric}_{mode}" for metric in ("mse", "psnr", "ssim") for mode in ("x_T", "z_sem")}
    assert set(table.columns) == {"id", "x_T_mean", "x_T_std", "x_T_neighbor_correlation", "field_share", *metrics}
    assert len(table) == result.num_cases == 5
    assert (table["mse_x_T"] < table["mse_z_sem"]).all()
    for mode in ("x_T", "z_sem"):
        image = nib.load(result.folder / mode / f"{table['id'][0]}.nii.gz")
        assert image.shape == (16, 16, 1)
        assert image.get_data_dtype() == np.uint8  # as the virtual patients are
    assert Image.open(result.folder / "mosaic.png").width > 100
    assert result.means["mse_x_T"] == pytest.approx(table["mse_x_T"].mean())


def test_z_sem_alone_depends_on_the_case_and_the_seed_and_not_on_the_batch(labelled, tmp_path):
    def images(name, **changed):
        options = {"steps": 3, "limit": 5, "device": "cpu", "grid": "model", **changed}
        out = reconstruct(labelled.bundle, labelled.cohort, tmp_path / name, mode="z_sem", **options).folder
        assert not (out / "x_T").exists()
        return {file.name: nib.load(file).get_fdata() for file in (out / "z_sem").iterdir()}

    expected = images("single", batch_size=1)
    for name, made in images("together", batch_size=5).items():
        np.testing.assert_allclose(made, expected[name], atol=1e-5)
    (first, image), *_ = images("other", seed=1).items()
    assert np.abs(image - expected[first]).max() > 0.1


def test_in_the_models_grid_which_a_preprocessing_that_cannot_be_undone_needs(tiny_bundle, tmp_path):
    options = {"limit": 1, "steps": 3, "device": "cpu"}
    reconstruct(tiny_bundle.directory, tiny_bundle.cohort, tmp_path / "model", grid="model", **options)
    (file,) = (tmp_path / "model" / "x_T").iterdir()
    made = nib.load(file)
    assert (made.shape, made.get_data_dtype()) == ((16, 16, 1), np.float32)
    assert -1.5 < made.get_fdata().min() < 0 < made.get_fdata().max() < 1.5
    with pytest.raises(ConfigError, match="scan's own space"):
        reconstruct(tiny_bundle.directory, tiny_bundle.cohort, tmp_path / "no", grid="model", dicom=True, **options)
    bundle = shutil.copytree(tiny_bundle.directory, tmp_path / "bundle")
    preprocessing = load_bundle(bundle, "cpu").config["preprocessing"]
    preprocessing["transforms"].append({"_target_": "NormalizeIntensityd", "keys": "@image_keys"})
    rewrite(bundle, preprocessing=preprocessing)
    with pytest.raises(ConfigError, match=r"NormalizeIntensityd cannot be undone.*or use grid model$"):
        reconstruct(bundle, tiny_bundle.cohort, tmp_path / "out", **options)
    assert reconstruct(bundle, tiny_bundle.cohort, tmp_path / "out", grid="model", **options).num_cases == 1


def test_a_colour_dicom_that_cannot_be_written_is_one_failed_case(tiny_bundle, tmp_path):
    (tmp_path / "scans").mkdir()
    colour = {
        "stored": np.random.default_rng(0).integers(256, size=(14, 10, 3)), "SamplesPerPixel": 3, "BitsAllocated": 16,
        "PlanarConfiguration": 0, "PhotometricInterpretation": "RGB", "PixelRepresentation": 0,
        "Rows": 14, "Columns": 10,
    }  # fmt: skip
    for number, tags in enumerate(({}, colour)):
        make_plane([0, 0, 0], number=number, SeriesInstanceUID=f"1.2.{number}", **tags).save_as(
            tmp_path / "scans" / f"{number}.dcm"
        )
    options = {"dicom": True, "steps": 2, "device": "cpu", "overrides": {"colour": "grey", "val_fraction": 0.0}}
    result = reconstruct(tiny_bundle.directory, tmp_path / "scans", tmp_path / "out", **options)
    assert (result.num_cases, result.num_failed) == (1, 1)
    assert result.incomplete
    assert len(list((tmp_path / "out" / "x_T" / "dicom").iterdir())) == 1
    (tmp_path / "scans" / "0.dcm").unlink()
    with pytest.raises(CohortError, match="all 1 cases failed"):
        reconstruct(tiny_bundle.directory, tmp_path / "scans", tmp_path / "none", **options)


def test_the_table_says_whether_x_T_is_noise(both, tiny_bundle):
    result, _ = both
    row = pd.read_csv(result.folder / "reconstructions.csv").iloc[0]
    cohort = pd.read_csv(tiny_bundle.cohort).set_index("id")
    values = {"inferer#steps": 3, "inferer#invert_steps": 3}
    trained = load_bundle(tiny_bundle.directory, "cpu", overrides=values)
    file = tiny_bundle.cohort.parent / cohort.loc[row["id"], "image"]
    image = trained.preprocessing({"image": str(file)})["image"].as_tensor()[None]
    x_T = trained.inferer.invert(image, trained.network)
    expected = {f"x_T_{name}": float(value) for name, value in noise_statistics(x_T).items()}
    assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-3)


def test_settings_that_are_not_given_are_the_bundles_and_the_record_has_all(tiny_bundle, tmp_path):
    for i, (settings, differs) in enumerate([
        ({}, {}),
        ({"steps": 5, "solver": "ddim"}, {"steps": 5, "invert_steps": 5, "solver": "ddim"}),
        ({"steps": 5, "overrides": {"inferer#invert_steps": 7}}, {"steps": 5, "invert_steps": 7}),
    ]):  # fmt: skip
        out = tmp_path / str(i)
        reconstruct(tiny_bundle.directory, tiny_bundle.cohort, out, limit=1, device="cpu", **settings)
        record = json.loads((out / "record.json").read_text())["made_from"]
        assert {key: record[key] for key in DEFAULTS} == {**DEFAULTS, **differs}


def test_solver_inversion_and_spacing_reach_the_images(labelled, tmp_path):
    results = {}
    for settings in ({}, {"solver": "ddim"}, {"inversion": "ddim"}, {"spacing": "leading"}):
        name = "_".join(settings) or "default"
        result = reconstruct(
            labelled.bundle, labelled.cohort, tmp_path / name, mode="both", limit=1, device="cpu", grid="model",
            **settings,
        )  # fmt: skip
        image = nib.load(next((tmp_path / name / "z_sem").glob("*.nii.gz"))).get_fdata()
        results[name] = image, result.means["x_T_std"]
    images, stds = ({name: values[i] for name, values in results.items()} for i in (0, 1))
    # a network that knows nothing yet is nearly linear, so the solvers agree nearly, but not to rounding
    assert np.abs(images["solver"] - images["default"]).max() > 1e-5
    np.testing.assert_array_equal(images["inversion"], images["default"])
    assert abs(stds["inversion"] - stds["default"]) > 1e-4
    assert np.abs(images["spacing"] - images["default"]).max() > 1e-5


def test_outside_the_field_of_view_the_image_is_empty_and_the_share_is_told(tiny_bundle_3d, tmp_path, caplog):
    cohort = pd.read_csv(tiny_bundle_3d.cohort)
    file = tiny_bundle_3d.cohort.parent / cohort["image"][0]
    scan = nib.load(file)
    (tmp_path / "scans").mkdir()
    large = np.pad(scan.get_fdata(dtype=np.float32), 16, constant_values=7)
    nib.save(nib.Nifti1Image(large, scan.affine), tmp_path / "scans" / "large.nii.gz")
    overrides = {"inferer#invert_tolerance": None}  # the images need not be exact
    options = {"steps": 2, "device": "cpu", "batch_size": 1, "overrides": overrides}
    result = reconstruct(tiny_bundle_3d.directory, tmp_path / "scans", tmp_path / "out", **options)
    made = nib.load(tmp_path / "out" / "x_T" / "large.nii.gz").get_fdata(dtype=np.float32)
    share = result.means["field_share"]
    assert 0 < share < 0.5
    assert (made != large.min()).mean() == pytest.approx(share, abs=0.02)
    assert f"which holds {100 * share:.1f} % of their voxels" in caplog.text
