import json
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from monai_diffae.apps.synthesis.vary import vary
from monai_diffae.bundle.loading import load_bundle
from monai_diffae.data.scans import read_scan
from monai_diffae.diffusion.noise import image_noise
from monai_diffae.errors import CohortError, ConfigError

CASE = "mni-000003"


def images(folder):
    return [nib.load(file).get_fdata() for file in sorted((folder / "images").glob("*.nii.gz"))]


@pytest.fixture(scope="module")
def six(tiny_bundle, tmp_path_factory):
    out = tmp_path_factory.mktemp("six")
    return vary(tiny_bundle.directory, tiny_bundle.cohort, out, case=CASE, num_images=6, device="cpu")


def test_variations_differ_and_their_mean_and_std_are_written(six):
    made = np.stack(images(six.folder))
    assert made.shape == (6, 16, 16, 1)
    for i in range(5):
        assert np.abs(made[i] - made[i + 1]).mean() > 0.01
    np.testing.assert_allclose(nib.load(six.folder / "mean.nii.gz").get_fdata(), made.mean(axis=0), atol=1e-5)
    std = nib.load(six.folder / "std.nii.gz").get_fdata()
    np.testing.assert_allclose(std, made.std(axis=0, ddof=1), atol=1e-5)
    assert six.mean_std == pytest.approx(std.mean(), rel=1e-5)
    with Image.open(six.folder / "variations.png") as picture:
        assert np.asarray(picture).std() > 10


def test_a_variation_is_a_function_of_the_seed_and_its_place_to_the_bit(six, tiny_bundle, tmp_path):
    options = {"case": CASE, "num_images": 3, "device": "cpu"}
    fewer = vary(tiny_bundle.directory, tiny_bundle.cohort, tmp_path / "fewer", **options)
    for made, expected in zip(images(fewer.folder), images(six.folder), strict=False):
        np.testing.assert_array_equal(made, expected)
    other = vary(tiny_bundle.directory, tiny_bundle.cohort, tmp_path / "other", **options, seed=1)
    assert np.abs(images(other.folder)[0] - images(six.folder)[0]).max() > 0.01


def test_a_second_call_skips_and_overwriting_leaves_nothing_old(tiny_bundle, tmp_path):
    def again(num_images=3, **changed):
        return vary(
            tiny_bundle.directory, tiny_bundle.cohort, tmp_path, case=CASE, num_images=num_images, device="cpu",
            **changed,
        )  # fmt: skip

    first = again()
    second = again()
    assert (first.skipped, second.skipped) == (False, True)
    assert first.mean_std == second.mean_std
    with pytest.raises(ConfigError, match="made with other num_images, seed"):
        again(num_images=2, seed=1)
    again(num_images=2, overwrite=True)
    assert len(images(tmp_path)) == 2
    assert CASE not in json.dumps(json.loads((tmp_path / "variations.json").read_text()))


@pytest.mark.parametrize("missing", ["images/002.nii.gz", "mean.nii.gz", "std.nii.gz"])
def test_what_was_deleted_is_made_again(six, tiny_bundle, tmp_path, missing):
    out = shutil.copytree(six.folder, tmp_path / "out")
    (out / missing).unlink()
    again = vary(tiny_bundle.directory, tiny_bundle.cohort, out, case=CASE, num_images=6, device="cpu")
    assert not again.skipped
    np.testing.assert_array_equal(nib.load(out / missing).get_fdata(), nib.load(six.folder / missing).get_fdata())


def test_grey_pictures_give_pngs_and_leave_no_mean_of_another_format(tiny_bundle, tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(20, 24), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    out = tmp_path / "out"
    vary(tiny_bundle.directory, tiny_bundle.cohort, out, case=CASE, num_images=2, device="cpu")
    vary(tiny_bundle.directory, tmp_path / "a.png", out, case="a", num_images=2, device="cpu", overwrite=True)
    assert [file.name for file in out.glob("mean*")] == ["mean.png"]
    assert [Image.open(out / name).size for name in ("images/000.png", "images/001.png", "mean.png")] == [(16, 16)] * 3
    assert nib.load(out / "std.nii.gz").shape == (16, 16, 1)


def test_in_colour_and_of_what_the_encoder_sees(unusual, tmp_path):
    vary(unusual.bundle, unusual.cohort, tmp_path, case="case-1", num_images=2, device="cpu")
    trained = load_bundle(unusual.bundle, "cpu")
    row = pd.read_csv(unusual.cohort).iloc[1]
    item = trained.preprocessing({key: str(unusual.cohort.parent / row[key]) for key in trained.image_keys})
    z_sem = trained.inferer.encode(item[trained.image_keys[-1]].as_tensor()[None], trained.network)
    noise = image_noise(trained.image_shape, 0, [0, 1])
    images = torch.cat([trained.inferer.decode(z_sem, x_T[None], trained.network) for x_T in noise])
    for name, expected in {"images/000": images[0], "images/001": images[1], "mean": images.mean(dim=0)}.items():
        made = read_scan(tmp_path / f"{name}.png").array / 127.5 - 1
        assert np.abs(made - expected.clamp(-1, 1).numpy()).max() < 1.01 / 255, name
    std = nib.load(tmp_path / "std.nii.gz").get_fdata().squeeze()
    assert std.shape == ((16, 16, 3) if len(images[0]) == 3 else (16, 16))


def test_wrong_arguments_are_one_line(tiny_bundle, tmp_path):
    with pytest.raises(ConfigError, match="num_images: 1 is below 2"):
        vary(tiny_bundle.directory, tiny_bundle.cohort, tmp_path, case=CASE, num_images=1, device="cpu")
    with pytest.raises(CohortError, match="the cohort has no 'mni-3'; did you mean 'mni-00000"):
        vary(tiny_bundle.directory, tiny_bundle.cohort, tmp_path, case="mni-3", device="cpu")
    assert not any(tmp_path.iterdir())
    table = pd.read_csv(tiny_bundle.cohort)
    table["image"] = [str(tiny_bundle.cohort.parent / file) for file in table["image"]]
    values = np.full((16, 16, 1), np.nan, np.float32)
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "nan.nii")
    table.loc[3, "image"] = str(tmp_path / "nan.nii")
    table.to_csv(tmp_path / "cohort.csv", index=False)
    with pytest.raises(CohortError, match=CASE):
        vary(tiny_bundle.directory, tmp_path / "cohort.csv", tmp_path / "out", case=CASE, device="cpu")
