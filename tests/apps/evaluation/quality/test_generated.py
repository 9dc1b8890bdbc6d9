import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from monai_diffae.apps.evaluation.evaluate import evaluate
from monai_diffae.apps.evaluation.quality.generated import GeneratedImages, nearest_images
from monai_diffae.apps.session import ReadCases, Session
from monai_diffae.apps.synthesis.generate import generate
from monai_diffae.data.embeddings import read_embeddings, split_rows, z_matrix
from monai_diffae.latents import LatentStatistics, copying_ratio, mmd
from monai_diffae.metrics.perceptual_distance import ALEXNET
from monai_diffae.transforms.case_images import read_image


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory):
    pytest.importorskip("lpips")
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / ALEXNET
    torch.save(models.alexnet(weights=None).state_dict(), file)
    return file


@pytest.fixture(scope="module")
def cohort(labelled, tmp_path_factory):
    """The cohort with more held-out cases: those for validation but one, without which others would be drawn for it."""
    table = pd.read_csv(labelled.cohort)
    table.loc[table.index[table["split"] == "val"][1:], "split"] = "test"
    file = tmp_path_factory.mktemp("cohort") / "cohort.csv"
    table.to_csv(file, index=False)
    return file


@pytest.fixture(scope="module")
def report(latent_bundle, cohort, tmp_path_factory):
    out = tmp_path_factory.mktemp("generated")
    return evaluate(out, bundle=latent_bundle, cohort=cohort, steps=[2, 3], num_images=12, device="cpu")


def rows_of(report, metric):
    return [row for row in report.content["rows"] if row["table"] == "generation" and row["metric"] == metric]


def test_the_figures_of_z_sem_are_those_of_the_samples_that_generate_writes(
    report, latent_bundle, labelled, tmp_path, cohort
):
    made = generate(latent_bundle, tmp_path, num_images=12, steps=3, device="cpu")
    samples = z_matrix(pd.read_parquet(made.folder / "generated.parquet"))
    table = read_embeddings(labelled.embeddings)
    is_test = pd.read_csv(cohort)["split"] == "test"
    train, test = z_matrix(split_rows(table, "train")), z_matrix(table[is_test.to_numpy()])
    statistics = LatentStatistics.of(train)
    samples, train, test = (statistics.normalise(z) for z in (samples, train, test))
    (row,) = rows_of(report, "mmd")
    assert row["value"] == pytest.approx(mmd(samples, test), rel=1e-4)
    assert (row["features"], row["num_cases"]) == ("z_sem", 12)
    (row,) = [row for row in rows_of(report, "copying_ratio") if row["features"] == "z_sem"]
    assert row["value"] == pytest.approx(copying_ratio(samples, train, test), rel=1e-4)
    assert row["low"] <= row["value"] <= row["high"]


def test_fewer_reconstructed_cases_do_not_change_the_figures_of_z_sem(report, latent_bundle, cohort, tmp_path):
    """They come from more held-out cases than are reconstructed, which once ended the run."""
    few = evaluate(tmp_path, bundle=latent_bundle, cohort=cohort, steps=[2], num_images=12, limit=3, device="cpu")
    figures = [
        [row for row in made.content["rows"] if row["table"] == "generation" and row["features"] == "z_sem"]
        for made in (report, few)
    ]
    assert figures[0] == figures[1]
    assert {row["metric"] for row in figures[1]} == {"mmd", "precision", "recall", "copying_ratio"}


def test_the_copying_ratio_in_pixels_by_brute_force(report, latent_bundle, cohort, tmp_path):
    made = generate(latent_bundle, tmp_path / "made", num_images=12, steps=3, device="cpu")
    session = Session.open(latent_bundle, cohort, device="cpu")
    train, test = (
        torch.stack([session.read(session.cohort.split(s), tmp_path).batch(i, i + 1)[0][0]
                     for i in range(len(session.cohort.split(s)))])
        for s in ("train", "test")
    )  # fmt: skip
    images = torch.stack([read_image(file, (-1, 1)) for file in sorted((made.folder / "images").iterdir())])

    def nearest(stack):
        return np.median([min(float((image - other).square().sum()) ** 0.5 for other in train) for image in stack])

    (row,) = [row for row in rows_of(report, "copying_ratio") if row["features"] == "pixels" and row["steps"] == 3]
    assert row["value"] == pytest.approx(nearest(images) / nearest(test), rel=0.02)  # PNG has 8 bits


def test_a_copy_has_a_distance_of_0(tiny_bundle, tmp_path):
    session = Session.open(tiny_bundle.directory, tiny_bundle.cohort, device="cpu")
    train: ReadCases = session.read(session.cohort.split("train"), tmp_path)
    images, _ = train.batch(0, 5)
    distances, positions = nearest_images(images.flip(0), train, 2)
    np.testing.assert_allclose(distances, 0, atol=1e-6)
    assert positions == [4, 3, 2, 1, 0]


def test_the_picture_shows_the_nearest_training_cases(report):
    with Image.open(report.folder / "generated_bundle.png") as picture:
        assert np.asarray(picture).std() > 10


def test_image_features(latent_bundle, cohort, alexnet, tmp_path, monkeypatch):
    arguments = {
        "bundle": latent_bundle, "cohort": cohort, "steps": [2], "num_images": 6, "alexnet": alexnet, "device": "cpu"
    }  # fmt: skip
    result = evaluate(tmp_path / "out", **arguments)
    for metric in ("fid", "kid", "precision", "recall"):
        (row,) = [row for row in rows_of(result, metric) if row["features"] == "alexnet"]
        assert row["value"] is not None
        assert row["steps"] == 2
    assert rows_of(result, "fid_training")[0]["steps"] is None
    assert 0 <= rows_of(result, "precision")[0]["value"] <= 1
    assert "| fid ↓ |" in (result.folder / "tables.md").read_text()
    # images of one generation that are the held-out cases themselves have a distance of 0
    session = Session.open(latent_bundle, cohort, device="cpu")
    held_out = session.read(session.cohort.split("test"), tmp_path).batch(0, 6)[0]
    monkeypatch.setattr(GeneratedImages, "decode", lambda self, condition, limit=None: held_out[:limit])
    result = evaluate(tmp_path / "copies", **arguments)
    (row,) = [row for row in rows_of(result, "fid") if row["features"] == "alexnet"]
    assert row["value"] == pytest.approx(0, abs=1e-6)


def test_without_a_latent_ddim_or_training_cases(labelled, latent_bundle, cohort, tmp_path):
    result = evaluate(tmp_path / "a", bundle=labelled.bundle, cohort=cohort, steps=[2], device="cpu")
    reasons = {each["metric"]: each["reason"] for each in result.content["omitted"]}
    assert reasons["generation"] == "bundle: there is no latent model; train it with monai-diffae train-latent"
    assert not [row for row in result.content["rows"] if row["table"] == "generation"]
    table = pd.read_csv(cohort)
    table[table["split"] == "test"].to_csv(tmp_path / "test.csv", index=False)
    result = evaluate(
        tmp_path / "b", bundle=latent_bundle, cohort=tmp_path / "test.csv", steps=[2], num_images=8, device="cpu"
    )
    assert rows_of(result, "mmd")
    assert not rows_of(result, "copying_ratio")
    reasons = {each["metric"]: each["reason"] for each in result.content["omitted"]}
    assert reasons["copying_ratio"] == "the cohort has no training cases"


def test_an_interrupted_generation_resumes(report, latent_bundle, cohort, tmp_path, monkeypatch):
    original, calls = GeneratedImages.decode, []

    def decode(self, condition, limit=None):
        calls.append(condition.steps)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, condition, limit)

    monkeypatch.setattr(GeneratedImages, "decode", decode)
    arguments = {"bundle": latent_bundle, "cohort": cohort, "steps": [2, 3], "num_images": 12, "device": "cpu"}
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path, **arguments)
    result = evaluate(tmp_path, **arguments)
    assert calls == [2, 3, 3, 3]  # the last one is for the picture
    assert result.figures() == report.figures()


def test_another_latent_ddim_is_another_result(latent_bundle, cohort, tmp_path):
    bundle = shutil.copytree(latent_bundle, tmp_path / "bundle")
    arguments = {"bundle": bundle, "cohort": cohort, "steps": [2], "num_images": 6, "num_codes": 0, "device": "cpu"}
    evaluate(tmp_path / "out", **arguments)
    weights = torch.load(bundle / "models" / "latent_model.pt", weights_only=True)
    torch.save({name: 1.1 * value for name, value in weights.items()}, bundle / "models" / "latent_model.pt")
    from monai_diffae.errors import ConfigError

    with pytest.raises(ConfigError, match="made with other bundles"):
        evaluate(tmp_path / "out", **arguments)
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["rows"]
