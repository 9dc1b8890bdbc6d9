import json
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from monai_diffae.apps.synthesis.reconstruct import reconstruct
from monai_diffae.apps.synthesis.traverse import traverse
from monai_diffae.bundle.loading import load_bundle
from monai_diffae.data.embeddings import read_embeddings, z_matrix
from monai_diffae.diffusion.noise import image_noise
from monai_diffae.errors import CohortError, ConfigError

QUICK = {"num_components": 2, "strengths": (-2, 0, 2), "num_noises": 2, "device": "cpu"}
NAMES = [f"{component}_{strength}" for component in ("001", "002") for strength in ("+0.00", "+2.00", "-2.00")]


@pytest.fixture(scope="module")
def traversed(labelled, tmp_path_factory):
    return traverse(labelled.bundle, labelled.embeddings, tmp_path_factory.mktemp("traversed"), **QUICK)


def pixels(folder, name):
    return np.asarray(Image.open(folder / "images" / f"{name}.png"), float)


def test_strength_0_is_the_mean_of_the_training_cases_over_the_noises(traversed, labelled):
    assert sorted(file.stem for file in (traversed.folder / "images").iterdir()) == NAMES
    table = read_embeddings(labelled.embeddings)
    z_mean = z_matrix(table[table["split"] == "train"]).mean(axis=0)
    trained = load_bundle(labelled.bundle, "cpu")
    z_sem = torch.from_numpy(z_mean)[None].expand(2, -1)
    image = trained.inferer.decode(z_sem, image_noise((1, 16, 16), 0, [0, 1]), trained.network).mean(dim=0)
    # PNG shows the first axis from left to right
    expected = ((image[0] + 1) / 2 * 255).clamp(0, 255).T.numpy()
    for component in ("001", "002"):
        made = pixels(traversed.folder, f"{component}_+0.00")
        assert min(np.abs(made - expected).max(), np.abs(made - expected.T).max()) < 1.01


def test_the_table_has_what_each_component_explains(traversed, labelled):
    table = pd.read_csv(traversed.folder / "components.csv")
    assert table["component"].tolist() == [1, 2]
    assert table["explained"].tolist() == pytest.approx(traversed.explained)
    embedded = read_embeddings(labelled.embeddings)
    z = z_matrix(embedded[embedded["split"] == "train"]).astype(float)
    variances = np.linalg.eigvalsh(np.cov(((z - z.mean(axis=0)) / z.std(axis=0)).T, bias=True))[::-1]
    np.testing.assert_allclose(table["std"], np.sqrt(variances[:2]), rtol=1e-4)
    np.testing.assert_allclose(table["explained"], variances[:2] / variances.sum(), rtol=1e-4)
    assert Image.open(traversed.folder / "traversal.png").width > 100


def test_from_a_case_strength_0_is_its_reconstruction(labelled, tmp_path):
    case = pd.read_csv(labelled.cohort)["id"][0]
    out = traverse(
        labelled.bundle, labelled.embeddings, tmp_path / "w", **QUICK, cohort=labelled.cohort, case=case
    ).folder
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
    assert case not in (out / "traversal.json").read_text()
    # its own x_T needs neither noise nor seed
    options = {**QUICK, "cohort": labelled.cohort, "case": case, "num_noises": 3, "seed": 1}
    assert traverse(labelled.bundle, labelled.embeddings, out, **options).skipped


def test_a_second_call_skips_and_overwriting_leaves_nothing_old(traversed, labelled, tmp_path):
    out = shutil.copytree(traversed.folder, tmp_path / "out")
    again = traverse(labelled.bundle, labelled.embeddings, out, **QUICK)
    assert again.skipped
    assert again.explained == traversed.explained
    for missing in ("images/002_+2.00.png", "components.csv"):
        (out / missing).unlink()
        assert not traverse(labelled.bundle, labelled.embeddings, out, **QUICK).skipped
        assert (out / missing).read_bytes() == (traversed.folder / missing).read_bytes()
    with pytest.raises(ConfigError, match="made with other num_components"):
        traverse(labelled.bundle, labelled.embeddings, out, **{**QUICK, "num_components": 1})
    traverse(labelled.bundle, labelled.embeddings, out, **{**QUICK, "num_components": 1}, overwrite=True)
    assert sorted(file.stem for file in (out / "images").iterdir()) == NAMES[:3]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"case": "a"}, "cohort: is required with a case"),
        ({"cohort": "cohort.csv"}, "case: is required with a cohort"),
        ({"num_components": 0}, "num_components: 0 is below 1"),
        ({"num_noises": 0}, "num_noises: 0 is below 1"),
        ({"num_components": 9}, "num_components: 9 components cannot be computed from"),
        ({"strengths": ()}, "strengths: .* are not numbers"),
        ({"strengths": (0, float("nan"))}, "strengths: nan cannot be used: input should be a finite number"),
        ({"strengths": (0, 1e308)}, "strengths: 1e.308 is beyond 100 standard deviations"),
        ({"strengths": (0.001, 0.002)}, "strengths: two of them are .0.00 when rounded to two digits"),
    ],
)
def test_arguments_out_of_range_are_refused(labelled, tmp_path, wrong, message):
    with pytest.raises(ConfigError, match=message) as caught:
        traverse(labelled.bundle, labelled.embeddings, tmp_path, **{**QUICK, **wrong})
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_embeddings_of_another_model_and_an_unknown_case_are_refused(labelled, tmp_path):
    other = shutil.copytree(labelled.embeddings.parent, tmp_path / "other") / "embeddings.parquet"
    record = json.loads(other.with_suffix(".json").read_text())
    record["made_from"]["model"] = "0" * 64
    other.with_suffix(".json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=r"embeddings\.parquet: another autoencoder made it"):
        traverse(labelled.bundle, other, tmp_path / "out", **QUICK)
    with pytest.raises(CohortError, match="the cohort has no 'nobody'"):
        traverse(labelled.bundle, labelled.embeddings, tmp_path / "out", **QUICK, cohort=labelled.cohort, case="nobody")
    with pytest.raises(CohortError, match="none.parquet: there is no such file"):
        traverse(labelled.bundle, tmp_path / "none.parquet", tmp_path / "out", **QUICK)
    assert not (tmp_path / "out").exists()
