import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from monai_diffae.apps.reconstruct import reconstruct
from monai_diffae.errors import ConfigError


@pytest.fixture(scope="module")
def both(tiny_bundle, tmp_path_factory):
    out = tmp_path_factory.mktemp("both")
    options = {"steps": 3, "limit": 5, "device": "cpu", "batch_size": 2}
    return reconstruct(tiny_bundle.directory, tiny_bundle.cohort, out, mode="both", **options), options


def test_both_modes_are_written_with_their_errors(both):
    result, _ = both
    table = pd.read_csv(result.folder / "reconstructions.csv")
    metrics = {f"{metric}_{mode}" for metric in ("mse", "psnr", "ssim") for mode in ("x_T", "z_sem")}
    assert set(table.columns) == {"id", "x_T_mean", "x_T_std", *metrics}
    assert len(table) == result.num_cases == 5
    assert (table["mse_x_T"] < table["mse_z_sem"]).all()
    for mode in ("x_T", "z_sem"):
        image = nib.load(result.folder / mode / f"{table['id'][0]}.nii.gz")
        assert image.shape == (16, 16, 1)
        assert image.get_data_dtype() == np.float32
    assert Image.open(result.folder / "mosaic.png").width > 100
    assert result.means["mse_x_T"] == pytest.approx(table["mse_x_T"].mean())


def test_a_second_call_skips_and_other_steps_are_refused(both, tiny_bundle):
    result, options = both
    again = reconstruct(tiny_bundle.directory, tiny_bundle.cohort, result.folder, mode="both", **options)
    assert again.skipped
    assert again.means == result.means
    with pytest.raises(ConfigError, match="made with other invert_steps, steps"):
        reconstruct(tiny_bundle.directory, tiny_bundle.cohort, result.folder, mode="both", **{**options, "steps": 2})


def test_z_sem_alone_depends_on_the_seed_and_not_on_the_batch(both, tiny_bundle, tmp_path):
    result, options = both
    files = [f"{case}.nii.gz" for case in pd.read_csv(result.folder / "reconstructions.csv")["id"]]

    def images(folder, **changed):
        reconstruct(
            tiny_bundle.directory, tiny_bundle.cohort, tmp_path / folder, mode="z_sem", **{**options, **changed}
        )
        assert not (tmp_path / folder / "x_T").exists()
        return np.stack([nib.load(tmp_path / folder / "z_sem" / file).get_fdata() for file in files])

    expected = np.stack([nib.load(result.folder / "z_sem" / file).get_fdata() for file in files])
    np.testing.assert_allclose(images("same", batch_size=5), expected, atol=1e-4)
    assert np.abs(images("other", seed=1) - expected).max() > 0.1


def test_png_cases_give_png(tiny_bundle, tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(20, 24), dtype=np.uint8)
    for name in "ab":
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    out = tmp_path / "out"
    reconstruct(tiny_bundle.directory, tmp_path / "a.png", out, steps=2, device="cpu", overrides={"val_fraction": 0.0})
    assert Image.open(out / "x_T" / "a.png").size == (16, 16)


@pytest.mark.parametrize("wrong", [{"mode": "z"}, {"steps": 0}, {"split": "all"}, {"steps": 5000}])
def test_arguments_out_of_range_are_refused(tiny_bundle, tmp_path, wrong):
    with pytest.raises(ConfigError):
        reconstruct(tiny_bundle.directory, tiny_bundle.cohort, tmp_path, device="cpu", **wrong)
