import numpy as np
import pandas as pd
import pytest

from monai_diffae.apps.evaluation.outliers import TrainingCases, unusual_shares
from monai_diffae.latents.neighbors import p_values


def cases(generator, name, num, dims=128):
    z = pd.DataFrame(generator.normal(size=(num, dims)), columns=[f"z_{i:03d}" for i in range(dims)])
    return pd.concat([pd.DataFrame({"id": [f"{name}{i}" for i in range(num)]}), z], axis=1)


@pytest.mark.parametrize("whitened", [False, True])
def test_one_in_twenty_new_cases_like_the_training_cases_is_unusual(whitened):
    shares = []
    for seed in range(6):
        generator = np.random.default_rng(seed)
        training = TrainingCases.from_rows(cases(generator, "train", 300))
        reference = training.own_distances(5, whitened)
        scores = training.distances(cases(generator, "new", 400), 5, whitened)
        shares.append((p_values(scores, reference, np.zeros(400, bool)) < 0.05).mean())
    assert 0.03 < np.mean(shares) < 0.07


def test_a_whitened_score_depends_on_its_case_alone_and_is_in_units_without_its_patient():
    generator = np.random.default_rng(0)
    rows = cases(generator, "train", 60, 8).assign(patient=[f"p{i // 2}" for i in range(60)])
    training = TrainingCases.from_rows(rows)
    new = cases(generator, "new", 20, 8).assign(patient=[f"q{i}" for i in range(20)])
    together = training.distances(new, 3, True)
    np.testing.assert_allclose(training.distances(new[::-1], 3, True)[::-1], together, rtol=1e-12)
    np.testing.assert_allclose(training.distances(new[7:8], 3, True), together[7:8], rtol=1e-12)
    again = rows.assign(id=[f"again{i}" for i in range(60)])  # as queries: the same scans of the same patients
    np.testing.assert_array_equal(training.distances(again, 3, True), training.own_distances(3, True))


def test_the_names_of_the_patients_and_the_order_of_the_table_change_no_score():
    generator = np.random.default_rng(0)
    rows = cases(generator, "train", 60, 8).assign(patient=[f"p{i // 2 * 7 % 30}" for i in range(60)])
    new = cases(generator, "new", 20, 8).assign(patient=[f"q{i // 2}" for i in range(20)])
    training = TrainingCases.from_rows(rows)
    hashes = generator.permutation(99).astype(str)
    renamed = {name: hashes[i] for i, name in enumerate([*rows["patient"].unique(), *new["patient"].unique()])}
    other = TrainingCases.from_rows(rows.assign(patient=rows["patient"].map(renamed)))
    np.testing.assert_array_equal(other.own_distances(3, True), training.own_distances(3, True))
    for queries in (new, rows):
        own = training.distances(queries, 3, True)
        renamed_queries = queries.assign(patient=queries["patient"].map(renamed))
        np.testing.assert_array_equal(other.distances(renamed_queries, 3, True), own)
    backwards = TrainingCases.from_rows(rows[::-1]).own_distances(3, True)[::-1]
    np.testing.assert_allclose(backwards, training.own_distances(3, True), rtol=1e-12)


def test_the_sample_of_training_cases_does_not_depend_on_the_order_of_the_table():
    rows = cases(np.random.default_rng(0), "train", 20, 4)
    sample = TrainingCases.from_rows(rows).sample(5, seed=0)
    assert sample == TrainingCases.from_rows(rows[::-1]).sample(5, seed=0)
    assert len(sample) == 5
    assert sample != TrainingCases.from_rows(rows).sample(5, seed=1)


def test_cases_without_a_p_value_do_not_count_as_usual():
    assert unusual_shares(["a", "a", "a"], [np.nan, 0.01, 0.9]) == {"a": 0.5}
