import numpy as np
import pandas as pd
import pytest
import torch
from monai.metrics import EmbeddingCollapseMetric

from monai_diffae.apps.evaluation.diagnose import diagnose
from monai_diffae.apps.evaluation.evaluate import evaluate
from monai_diffae.data.embeddings import read_embeddings, split_rows, z_matrix
from monai_diffae.data.samples import FACTORS
from monai_diffae.latents import LatentStatistics, active_dimensions, dci


@pytest.fixture(scope="module")
def report(labelled, tmp_path_factory):
    out = tmp_path_factory.mktemp("codes")
    return evaluate(out, bundle=labelled.bundle, cohort=labelled.cohort, steps=[2], device="cpu")


@pytest.fixture
def values(report):
    return {
        (row["metric"], row["features"] or row["timestep"]): row
        for row in report.content["rows"]
        if row["table"] == "z_sem"
    }


def test_usage_is_that_of_diagnose(values, labelled, tmp_path):
    diagnosed = diagnose(labelled.bundle, labelled.cohort, tmp_path, split="test", device="cpu")
    row = values["z_sem_usage", None]
    assert row["value"] == pytest.approx(diagnosed.z_sem_usage, rel=1e-5)
    assert row["low"] <= row["value"] <= row["high"]
    for level in diagnosed.noise_levels:
        assert values["z_sem_usage", level["timestep"]]["value"] == pytest.approx(level["z_sem_usage"], rel=1e-5)


def test_dimensions_collapse_and_disentanglement_are_those_of_the_embeddings(values, labelled):
    table = read_embeddings(labelled.embeddings)
    train, test = split_rows(table, "train"), split_rows(table, "test")
    z = z_matrix(test)
    assert values["participation_ratio", None]["value"] == active_dimensions(z).participation_ratio
    assert values["dims", None]["value"] == 8
    z_norm = torch.from_numpy(LatentStatistics.of(z).normalise(z))
    is_wide = torch.tensor((test["wide"] == "yes").to_numpy(), dtype=torch.long)
    scores = EmbeddingCollapseMetric(reduction="none")(z_norm, is_wide)
    assert values["collapse_effective_rank", None]["value"] == pytest.approx(float(scores["effective_rank_score"]))
    for name in ("centroid_similarity", "separation"):
        assert values[f"collapse_{name}", "wide"]["value"] == pytest.approx(float(scores[name]))
    names = [factor.name for factor in FACTORS]
    if len(train) >= 10:
        expected = dci(z_matrix(train), train[names], z, test[names])
        assert values["disentanglement", None]["value"] == pytest.approx(expected.disentanglement)


def test_what_few_cases_cannot_show_costs_a_line(report, labelled):
    train = (pd.read_csv(labelled.cohort)["split"] == "train").sum()
    assert train < 10
    (omission,) = [each for each in report.content["omitted"] if each["metric"] == "disentanglement"]
    assert f"{train} cases are too few" in omission["reason"]


def test_disentanglement_of_enough_cases(tiny_bundle, tmp_path):
    from monai_diffae.data.samples import make_virtual_cohort

    cohort = make_virtual_cohort(tmp_path / "cohort", num_patients=40, size=16, val_fraction=0, test_fraction=0.3)
    arguments = {"bundle": tiny_bundle.directory, "cohort": cohort, "steps": [2], "limit": 2, "device": "cpu"}
    rows = evaluate(tmp_path / "out", **arguments).content["rows"]
    values = {row["metric"]: row for row in rows if row["table"] == "z_sem" and row["timestep"] is None}
    assert 0 <= values["disentanglement"]["value"] <= 1
    num_test = (pd.read_csv(cohort)["split"] == "test").sum()
    assert values["disentanglement"]["num_cases"] == num_test  # all held-out cases, not only those that are decoded
    assert np.isfinite(values["informativeness"]["value"])
    rows = evaluate(tmp_path / "none", **arguments, num_codes=0).content["rows"]
    assert {row["table"] for row in rows} == {"reconstruction", "z_sem_only"}


def test_one_patient_has_no_other_to_compare_with(labelled, tmp_path):
    result = evaluate(tmp_path, bundle=labelled.bundle, cohort=labelled.cohort, steps=[2], limit=1, device="cpu")
    (omission,) = [each for each in result.content["omitted"] if each["metric"] == "z_sem_usage"]
    assert "all cases are of one patient" in omission["reason"]
