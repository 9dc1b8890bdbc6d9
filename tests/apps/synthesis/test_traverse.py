import json
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from monai_diffae.apps.synthesis.reconstruct import reconstruct
from monai_diffae.apps.synthesis.traverse import walk
from monai_diffae.bundle.loading import load_bundle
from monai_diffae.data.embeddings import read_embeddings, z_of
from monai_diffae.diffusion.noise import image_noise
from monai_diffae.errors import CohortError, ConfigError

QUICK = {"num_components": 2, "amounts": (-2, 0, 2), "num_noises": 2, "device": "cpu"}
NAMES = [f"{component}_{amount}" for component in ("001", "002") for amount in ("+0.00", "+2.00", "-2.00")]


@pytest.fixture(scope="module")
def walked(labelled, tmp_path_factory):
    return walk(labelled.bundle, labelled.embeddings, tmp_path_factory.mktemp("walked"), **QUICK)


def pixels(folder, name):
    return np.asarray(Image.open(folder / "images" / f"{name}.png"), float)


def test_amount_0_is_the_mean_of_the_training_cases_over_the_noises(walked, labelled):
    assert sorted(file.stem for file in (walked.folder / "images").iterdir()) == NAMES
    table = read_embeddings(labelled.embeddings)
    z_mean = z_of(table[table["split"] == "train"]).mean(axis=0)
    trained = load_bundle(labelled.bundle, "cpu")
    z_sem = torch.from_numpy(z_mean)[None].expand(2, -1)
    image = trained.inferer.decode(z_sem, image_noise((1, 16, 16), 0, [0, 1]), trained.network).mean(dim=0)
    # PNG shows the first axis from left to right
    expected = ((image[0] + 1) / 2 * 255).clamp(0, 255).T.numpy()
    for component in ("001", "002"):
        made = pixels(walked.folder, f"{component}_+0.00")
        assert min(np.abs(made - expected).max(), np.abs(made - expected.T).max()) < 1.01


def test_the_table_has_what_each_component_explains(walked, labelled):
    table = pd.read_csv(walked.folder / "components.csv")
    assert table["component"].tolist() == [1, 2]
    assert table["explained"].tolist() == pytest.approx(walked.explained)
    embedded = read_embeddings(labelled.embeddings)
    z = z_of(embedded[embedded["split"] == "train"]).astype(float)
    variances = np.linalg.eigvalsh(np.cov(((z - z.mean(axis=0)) / z.std(axis=0)).T, bias=True))[::-1]
    np.testing.assert_allclose(table["std"], np.sqrt(variances[:2]), rtol=1e-4)
    np.testing.assert_allclose(table["explained"], variances[:2] / variances.sum(), rtol=1e-4)
    assert Image.open(walked.folder / "walk.png").width > 100


def test_from_a_case_amount_0_is_its_reconstruction(labelled, tmp_path):
    case = pd.read_csv(labelled.cohort)["id"][0]
    out = walk(labelled.bundle, labelled.embeddings, tmp_path / "w", **QUICK, cohort=labelled.cohort, case=case).folder
    plain = (
        reconstruct(labelled.bundle, labelled.cohort, tmp_path / "r", limit=1, device="cpu", grid="model").folder
        / "x_T"
    )
    expected = nib.load(plain / f"{case}.nii.gz").get_fdata()
    assert sorted(file.name.removesuffix(".nii.gz") for file in (out / "images").iterdir()) == NAMES
    for component in ("001", "002"):
        made = nib.load(out / "images" / f"{component}_+0.00.nii.gz").get_fdata()
        np.testing.assert_allclose(made, expected, atol=1e-4)
        moved = nib.load(out / "images" / f"{component}_+2.00.nii.gz").get_fdata()
        assert np.abs(moved - made).max() > 1e-3
    assert case not in (out / "walk.json").read_text()
    # its own x_T needs neither noise nor seed
    options = {**QUICK, "cohort": labelled.cohort, "case": case, "num_noises": 3, "seed": 1}
    assert walk(labelled.bundle, labelled.embeddings, out, **options).skipped


def test_a_second_call_skips_and_overwriting_leaves_nothing_old(walked, labelled, tmp_path):
    out = shutil.copytree(walked.folder, tmp_path / "out")
    again = walk(labelled.bundle, labelled.embeddings, out, **QUICK)
    assert again.skipped
    assert again.explained == walked.explained
    for missing in ("images/002_+2.00.png", "components.csv"):
        (out / missing).unlink()
        assert not walk(labelled.bundle, labelled.embeddings, out, **QUICK).skipped
        assert (out / missing).read_bytes() == (walked.folder / missing).read_bytes()
    with pytest.raises(ConfigError, match="made with other num_components"):
        walk(labelled.bundle, labelled.embeddings, out, **{**QUICK, "num_components": 1})
    walk(labelled.bundle, labelled.embeddings, out, **{**QUICK, "num_components": 1}, overwrite=True)
    assert sorted(file.stem for file in (out / "images").iterdir()) == NAMES[:3]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"case": "a"}, "case: say --cohort, too: the cohort that it is in"),
        ({"cohort": "cohort.csv"}, "cohort: say --case, too: the case to start from"),
        ({"num_components": 0}, "num_components: at least one"),
        ({"num_noises": 0}, "num_noises: at least one"),
        ({"num_components": 9}, "components: 9 cannot be found in"),
        ({"amounts": ()}, "amounts: .* are not numbers"),
        ({"amounts": (0, float("nan"))}, "amounts: .* are not numbers"),
        ({"amounts": (0, 1e308)}, "amounts: 1e.308 is beyond 100 standard deviations"),
        ({"amounts": (0.001, 0.002)}, "amounts: two of them are .0.00 to two digits"),
    ],
)
def test_arguments_out_of_range_are_refused(labelled, tmp_path, wrong, message):
    with pytest.raises(ConfigError, match=message) as caught:
        walk(labelled.bundle, labelled.embeddings, tmp_path, **{**QUICK, **wrong})
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_embeddings_of_another_model_and_an_unknown_case_are_refused(labelled, tmp_path):
    other = shutil.copytree(labelled.embeddings.parent, tmp_path / "other") / "embeddings.parquet"
    record = json.loads(other.with_suffix(".json").read_text())
    record["made_from"]["model"] = "0" * 64
    other.with_suffix(".json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=r"embeddings\.parquet: another autoencoder made it"):
        walk(labelled.bundle, other, tmp_path / "out", **QUICK)
    with pytest.raises(CohortError, match="the cohort has no 'nobody'"):
        walk(labelled.bundle, labelled.embeddings, tmp_path / "out", **QUICK, cohort=labelled.cohort, case="nobody")
    with pytest.raises(CohortError, match="none.parquet: there is no such file"):
        walk(labelled.bundle, tmp_path / "none.parquet", tmp_path / "out", **QUICK)
    assert not (tmp_path / "out").exists()
