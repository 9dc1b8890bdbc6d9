"""Figures of generated images and of z_sem in an evaluation."""

import shutil
from unittest.mock import Mock, patch

import numpy as np
import pandas as pd
import pytest
import torch
from monai.metrics import EmbeddingCollapseMetric
from PIL import Image
from tiny_bundles import rewrite, scaled

from monai_diffae import embed, generate
from monai_diffae.apps.evaluation.evaluate import _Evaluation, evaluate
from monai_diffae.apps.evaluation.quality import GeneratedImages
from monai_diffae.apps.session import Session
from monai_diffae.apps.settings import Run
from monai_diffae.data.embeddings import read_embeddings, split_rows, z_matrix
from monai_diffae.data.samples import FACTORS, make_virtual_cohort
from monai_diffae.errors import OtherResultsError
from monai_diffae.latents import LatentStatistics, active_dimensions, copying_ratio, dci, mmd
from monai_diffae.metrics import frechet_distance, kernel_distance, precision_and_recall
from monai_diffae.transforms.writing import read_image


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
    return evaluate(out, bundle=latent_bundle, cohort=cohort, steps=[2, 3], num_images=12, limit=3, device="cpu")


def rows_of(report, metric):
    return [row for row in report.figures["rows"] if row["table"] == "generation" and row["metric"] == metric]


def test_the_figures_of_z_sem_are_those_of_the_samples_of_generate(report, latent_bundle, labelled, tmp_path, cohort):
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


def test_the_copying_ratio_in_pixels_by_brute_force(report, latent_bundle, cohort, tmp_path):
    made = generate(latent_bundle, tmp_path / "made", num_images=12, steps=3, device="cpu")
    session = Session.open(latent_bundle, cohort, run=Run(device="cpu"))
    train, test = (session.read(session.cohort.split(s), tmp_path).batch(0, 12)[0] for s in ("train", "test"))
    images = torch.stack([read_image(file, (-1, 1)) for file in sorted((made.folder / "images").iterdir())])

    def nearest(stack):
        return np.median([min(float((image - other).square().sum()) ** 0.5 for other in train) for image in stack])

    (row,) = [row for row in rows_of(report, "copying_ratio") if row["features"] == "pixels" and row["steps"] == 3]
    assert row["value"] == pytest.approx(nearest(images) / nearest(test[:3]), rel=0.02)  # PNG has 8 bits
    with Image.open(report.folder / "generated_bundle.png") as picture:  # beside their nearest training cases
        assert np.asarray(picture).std() > 10


@pytest.mark.slow
def test_distances_of_image_features(latent_bundle, cohort, tmp_path, monkeypatch):
    """FID, KID, precision and recall with the means of four quarters as features, in place of a network's."""

    def features(images, model_range):
        return torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)

    monkeypatch.setattr("monai_diffae.metrics.InceptionFeatures", lambda device, is_colour: features)
    arguments = {"bundle": latent_bundle, "cohort": cohort, "steps": [3], "num_images": 12, "limit": 3, "device": "cpu"}
    result = evaluate(tmp_path / "out", **arguments)

    def value(metric):
        (row,) = [row for row in rows_of(result, metric) if row["features"] == "inception"]
        return row["value"]

    made = generate(latent_bundle, tmp_path / "made", num_images=12, steps=3, device="cpu")
    images = torch.stack([read_image(file, (-1, 1)) for file in sorted((made.folder / "images").iterdir())])
    session = Session.open(latent_bundle, cohort, run=Run(device="cpu"))
    test = session.read(session.cohort.split("test"), tmp_path).batch(0, 12)[0]
    real, drawn = (features(each, (-1, 1)).double().numpy() for each in (test, images))
    assert value("fid") == pytest.approx(frechet_distance(real, drawn), rel=0.05)  # PNG has 8 bits
    assert value("kid") == pytest.approx(kernel_distance(drawn, real), rel=0.05)
    realistic, covered = precision_and_recall(real, drawn)
    assert (value("precision"), value("recall")) == (realistic.mean(), covered.mean())


def test_a_model_with_one_z_sem_for_all_cases_generates_without_a_latent_ddim(labelled, cohort, tmp_path):
    bundle = shutil.copytree(labelled.bundle, tmp_path / "bundle")
    rewrite(bundle, lambda tensors: {name: t * (not name.startswith("encoder")) for name, t in tensors.items()})
    arguments = {"steps": [2], "num_images": 4, "limit": 3, "num_levels": 0, "device": "cpu"}
    result = evaluate(tmp_path / "out", bundle=bundle, cohort=cohort, **arguments)
    (row,) = rows_of(result, "copying_ratio")
    assert (row["features"], row["num_cases"]) == ("pixels", 4)
    (reason,) = [each["reason"] for each in result.figures["omitted"] if each["metric"] == "mmd"]
    assert "the same for all" in reason


def test_another_latent_ddim_is_another_result(latent_bundle, cohort, tmp_path):
    bundle = shutil.copytree(latent_bundle, tmp_path / "bundle")
    arguments = {"bundle": bundle, "cohort": cohort, "steps": [2], "num_images": 6, "num_codes": 10, "device": "cpu"}
    evaluate(tmp_path / "out", **arguments)
    rewrite(bundle, scaled(1.1), "latent_model.safetensors")
    with pytest.raises(OtherResultsError):
        evaluate(tmp_path / "out", **arguments)


def test_generated_images_of_an_interrupted_run_are_not_those_of_another_seed(latent_bundle, cohort, tmp_path):
    arguments = {"bundle": latent_bundle, "cohort": cohort, "steps": [2], "num_images": 2, "num_codes": 10, "limit": 1}
    rows = Mock(return_value=[])
    with patch.object(GeneratedImages, "_condition_rows", rows), patch.object(_Evaluation, "_write") as write:
        write.side_effect = KeyboardInterrupt
        for seed in (0, 0, 1):
            with pytest.raises(KeyboardInterrupt):
                evaluate(tmp_path, **arguments, seed=seed, device="cpu")
    assert rows.call_count == 2


@pytest.fixture(scope="module")
def codes(labelled, tmp_path_factory):
    out = tmp_path_factory.mktemp("codes")
    return evaluate(out, bundle=labelled.bundle, cohort=labelled.cohort, steps=[2], device="cpu")


@pytest.fixture
def values(codes):
    return {
        (row["metric"], row["features"] or row["timestep"]): row
        for row in codes.figures["rows"]
        if row["table"] == "z_sem"
    }


def test_dimensions_and_collapse_are_those_of_the_embeddings(values, labelled):
    test = split_rows(read_embeddings(labelled.embeddings), "test")
    z = z_matrix(test)
    assert values["participation_ratio", None]["value"] == active_dimensions(z).participation_ratio
    assert values["dims", None]["value"] == 8
    z_norm = torch.from_numpy(LatentStatistics.of(z).normalise(z))
    is_wide = torch.tensor((test["wide"] == "yes").to_numpy(), dtype=torch.long)
    scores = EmbeddingCollapseMetric(reduction="none")(z_norm, is_wide)
    assert values["collapse_effective_rank", None]["value"] == pytest.approx(float(scores["effective_rank_score"]))
    for name in ("centroid_similarity", "separation"):
        assert values[f"collapse_{name}", "wide"]["value"] == pytest.approx(float(scores[name]))


@pytest.mark.slow
def test_disentanglement_is_that_of_all_held_out_cases(labelled, tmp_path):
    cohort = make_virtual_cohort(tmp_path / "cohort", num_patients=24, size=16, val_fraction=0, test_fraction=0.3)
    arguments = {"bundle": labelled.bundle, "cohort": cohort, "steps": [2], "limit": 2, "device": "cpu"}
    rows = evaluate(tmp_path / "out", **arguments).figures["rows"]
    values = {row["metric"]: row for row in rows if row["table"] == "z_sem" and row["timestep"] is None}
    table = read_embeddings(embed(labelled.bundle, cohort, tmp_path / "e", device="cpu").path)
    train, test = split_rows(table, "train"), split_rows(table, "test")
    names = [factor.name for factor in FACTORS]
    expected = dci(z_matrix(train), train[names], z_matrix(test), test[names])
    assert values["disentanglement"]["value"] == pytest.approx(expected.disentanglement)
    assert values["disentanglement"]["num_cases"] == len(test)  # not only those that are decoded
