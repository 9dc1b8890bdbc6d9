import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from monai_diffae.apps.synthesis.interpolate import interpolate
from monai_diffae.apps.synthesis.reconstruct import reconstruct
from monai_diffae.errors import CohortError, ConfigError


def image(folder, name):
    return nib.load(folder / "images" / f"{name}.nii.gz").get_fdata()


@pytest.fixture(scope="module")
def ends(tiny_bundle):
    return dict(zip(("start", "end"), pd.read_csv(tiny_bundle.cohort)["id"][:2], strict=True))


@pytest.fixture(scope="module")
def strip(tiny_bundle, ends, tmp_path_factory):
    out = tmp_path_factory.mktemp("strip")
    return interpolate(tiny_bundle.directory, tiny_bundle.cohort, out, **ends, num_images=5, device="cpu").folder


def test_the_ends_are_the_plain_reconstructions_and_between_them_is_something_else(strip, tiny_bundle, ends, tmp_path):
    plain = (
        reconstruct(tiny_bundle.directory, tiny_bundle.cohort, tmp_path, limit=2, device="cpu", grid="model").folder
        / "x_T"
    )
    first, second = (nib.load(plain / f"{name}.nii.gz").get_fdata() for name in ends.values())
    np.testing.assert_allclose(image(strip, "0.000"), first, atol=1e-4)
    np.testing.assert_allclose(image(strip, "1.000"), second, atol=1e-4)
    names = [file.name.removesuffix(".nii.gz") for file in sorted((strip / "images").iterdir())]
    assert names == ["0.000", "0.250", "0.500", "0.750", "1.000"]
    # it goes from one to the other
    nearer = [np.square(image(strip, name) - second).mean() for name in names]
    assert nearer[0] > nearer[2] > nearer[4]
    assert np.abs(image(strip, "0.500") - (first + second) / 2).max() > 1e-3  # no pixels blended


def test_the_strip_has_two_rows_of_images(strip):
    with Image.open(strip / "interpolation.png") as picture:
        pixels = np.asarray(picture.convert("L"))
    assert pixels.shape[1] > 1000
    assert pixels[: pixels.shape[0] // 2].std() > 10
    assert pixels[pixels.shape[0] // 2 :].std() > 10


def test_a_second_call_skips_other_arguments_are_refused_and_overwriting_leaves_nothing_old(
    strip, tiny_bundle, ends, tmp_path
):
    out = shutil.copytree(strip, tmp_path / "out")

    def again(**changed):
        options = {**ends, "num_images": 5, "device": "cpu", **changed}
        return interpolate(tiny_bundle.directory, tiny_bundle.cohort, out, **options)

    assert again().skipped
    (out / "images" / "0.250.nii.gz").unlink()
    assert not again().skipped
    np.testing.assert_array_equal(image(out, "0.250"), image(strip, "0.250"))
    with pytest.raises(ConfigError, match="interpolation.png: exists and was made with other num_images"):
        again(num_images=3)
    with pytest.raises(ConfigError, match="made with other cases"):
        again(start=ends["end"], end=ends["start"])
    assert not again(num_images=3, overwrite=True).skipped
    assert sorted(file.name[:5] for file in (out / "images").iterdir()) == ["0.000", "0.500", "1.000"]
    np.testing.assert_allclose(image(out, "0.500"), image(strip, "0.500"), atol=1e-5)


def test_wrong_cases_are_one_line(tiny_bundle, ends, tmp_path):
    def wrong(**changed):
        interpolate(tiny_bundle.directory, tiny_bundle.cohort, tmp_path, **{**ends, "device": "cpu", **changed})

    with pytest.raises(CohortError, match="the cohort has no 'mni-000001x'; did you mean 'mni-000001'"):
        wrong(end="mni-000001x")
    with pytest.raises(ConfigError, match="end: 'mni-000001' is also the start"):
        wrong(start="mni-000001", end="mni-000001")
    with pytest.raises(ConfigError, match="num_images: 1 is below 2"):
        wrong(num_images=1)
    with pytest.raises(ConfigError, match="infere: the model's configuration has no such key"):
        wrong(overrides={"infere": 5})
    assert not any(tmp_path.iterdir())


def test_a_case_that_cannot_be_read_is_named_and_no_other(tiny_bundle, ends, tmp_path):
    table = pd.read_csv(tiny_bundle.cohort)
    table["image"] = [str(tiny_bundle.cohort.parent / file) for file in table["image"]]
    good = nib.load(table["image"][1])
    values = np.asarray(good.dataobj, np.float32)
    values[3, 3] = np.nan
    nib.save(nib.Nifti1Image(values, good.affine), tmp_path / "nan.nii")
    (tmp_path / "other.nii").write_bytes(b"no scan, of a case that is not asked for")
    table.loc[[1, 5], "image"] = [str(tmp_path / "nan.nii"), str(tmp_path / "other.nii")]
    table.to_csv(tmp_path / "cohort.csv", index=False)
    with pytest.raises(CohortError, match=f"^{ends['end']}: ") as caught:
        interpolate(tiny_bundle.directory, tmp_path / "cohort.csv", tmp_path / "out", **ends, device="cpu")
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
