"""p-values and intervals on simulated codes, where the truth is known. Each bound allows for its Monte Carlo error.

Cases of one run share their training set, so standard errors are computed from the R independent runs, or, for one
value per run, as ``sqrt(s (1 - s) / R)``.
"""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from monai_diffae.apps.evaluation.neighbors import neighbors
from monai_diffae.apps.evaluation.quality.summary import difference_rows
from monai_diffae.latents import dci, outlier_scores, permutation_test

pytestmark = pytest.mark.slow

LEVELS = np.array([0.05, 0.1, 0.2])


def codes(generator, patients, scans=1, dims=48):
    """Codes of patients [N, D] with a spectrum 1 / sqrt(k), rotated; scans of a patient have a correlation of .7."""
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(dims, dims)))[0] / np.arange(1, dims + 1)[:, None] ** 0.25
    own = np.repeat(generator.normal(size=(patients, dims)), scans, axis=0)
    z = np.sqrt(0.7) * own + np.sqrt(0.3) * generator.normal(size=own.shape)
    return z @ axes, np.repeat(np.arange(patients), scans)


def assert_uniform(p, num_reference=10_000):
    """Check P(p <= .05, .1, .2) over runs [R, N], to 3 standard errors and .01; p are multiples of 1 / (n + 1)."""
    below = (np.asarray(p)[..., None] <= LEVELS).mean(axis=1)
    error = below.std(axis=0, ddof=1) / np.sqrt(len(below))
    expected = np.floor(LEVELS * (num_reference + 1)) / (num_reference + 1)
    assert (np.abs(below.mean(axis=0) - expected) <= 3 * error + 0.01).all(), (below.mean(axis=0), error)


@pytest.mark.parametrize("whitened", [False, True])
@pytest.mark.parametrize(("patients", "scans", "runs"), [(10, 1, 400), (30, 1, 200), (100, 1, 100), (30, 3, 100)])
def test_outlier_p_values_of_cases_like_the_reference_are_uniform(patients, scans, runs, whitened):
    """Standard errors: .004 to .009. When training cases shrank their own distances, P(p <= .1) was .35 for n = 10."""
    p = []
    for seed in range(runs):
        generator = np.random.default_rng(seed)
        reference, groups = codes(generator, patients, scans)
        new, _ = codes(generator, 60)
        p.append(outlier_scores(new, reference, reference_groups=groups, whitened=whitened).p_values)
    assert_uniform(p, patients * scans)


@pytest.mark.parametrize(("patients", "runs"), [(10, 60), (30, 40), (100, 20)])
def test_p_values_of_the_command_neighbors_are_uniform_for_held_out_cases(patients, runs, tmp_path):
    """Standard errors: up to .02."""
    p = {"p_distance": [], "p_whitened": []}
    for seed in range(runs):
        z, _ = codes(np.random.default_rng(seed), patients + 60)
        table = pd.DataFrame(
            {"id": [f"c{i:03d}" for i in range(len(z))], "split": ["train"] * patients + ["test"] * 60}
        )
        table = table.join(pd.DataFrame(z, columns=[f"z_{i:03d}" for i in range(z.shape[1])]))
        table.to_csv(tmp_path / f"{seed}.csv", index=False)
        neighbors(tmp_path / f"{seed}.csv", tmp_path / f"{seed}", split="test")
        outliers = pd.read_csv(tmp_path / f"{seed}" / "outliers.csv")
        for name, values in p.items():
            values.append(outliers[name].to_numpy())
    for values in p.values():
        assert_uniform(values, patients)


@pytest.mark.parametrize("statistic", ["energy", "mmd"])
@pytest.mark.parametrize("scans", [1, 3])
def test_permutation_tests_of_patients_have_their_size(statistic, scans):
    """Standard errors of 200 runs: .015 to .03. By cases, .88 of true nulls with three scans had p <= .05."""
    p, values = [], []
    for seed in range(200):
        generator = np.random.default_rng(seed)
        a, groups = codes(generator, 20, scans, dims=16)
        b, _ = codes(generator, 20, scans, dims=16)
        result = permutation_test(statistic, a, b, groups=(groups, groups + 20), num=99, seed=seed)
        p.append([result.p_value])
        values.append(result.value)
    assert_uniform(p)
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(200)  # unbiased


@pytest.mark.parametrize(
    ("patients", "scans", "runs"), [(3, 1, 400), (10, 1, 400), (30, 1, 300), (100, 1, 150), (10, 3, 300)]
)
def test_differences_between_equal_models_are_seen_in_one_of_twenty(patients, scans, runs):
    """The p-values that belong to the intervals of evaluate and compare. Standard errors: .011 to .018 at .05.

    A percentile bootstrap excluded the truth in 25 % (3 patients), 8 to 10 % (10) and 7 % (30).
    """
    p = []
    for seed in range(runs):
        generator = np.random.default_rng(seed)
        error, difference = (codes(generator, patients, scans, dims=1)[0][:, 0] for _ in range(2))
        rows = [
            {"table": "reconstruction", "bundle": bundle, "id": f"c{i}", "mse": value}
            for bundle, values in (("a", error), ("b", error + difference))
            for i, value in enumerate(values)
        ]
        owners = {f"c{i}": f"p{i // scans}" for i in range(len(error))}
        (row,) = difference_rows(rows, "a", owners)
        t = row["value"] / (row["high"] - row["value"]) * stats.t.ppf(0.975, patients - 1)
        p.append([2 * stats.t.sf(abs(t), patients - 1)])
    assert_uniform(p)


def test_codes_of_noise_are_not_disentangled():
    """Each of six factors passes with a probability of .01, so .06 of runs have any; standard error of 60 runs: .03."""
    scores = []
    for seed in range(60):
        generator = np.random.default_rng(seed)
        z, factors, unseen_z, unseen_factors = (
            generator.normal(size=size) for size in ((60, 16), (60, 6), (40, 16), (40, 6))
        )
        scores.append(dci(z, factors, unseen_z, unseen_factors).disentanglement)
    assert np.mean(np.array(scores) > 0) <= 0.06 + 3 * 0.03
