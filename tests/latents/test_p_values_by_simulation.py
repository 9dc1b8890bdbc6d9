"""p-values and intervals on simulated codes, where the truth is known. Each bound allows for its Monte Carlo error.

Standard errors are computed from the independent runs, as cases of one run share their training set.
"""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from monai_diffae.apps.evaluation.neighbors import neighbors
from monai_diffae.apps.evaluation.quality_tables import difference_rows
from monai_diffae.latents import dci

pytestmark = pytest.mark.slow

LEVELS = np.array([0.05, 0.1, 0.2])


def codes(generator, patients, scans=1, dims=48):
    """Codes of patients [N, D] with a spectrum 1 / sqrt(k), rotated; scans of a patient have a correlation of .7."""
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(dims, dims)))[0] / np.arange(1, dims + 1)[:, None] ** 0.25
    own = np.repeat(generator.normal(size=(patients, dims)), scans, axis=0)
    return (np.sqrt(0.7) * own + np.sqrt(0.3) * generator.normal(size=own.shape)) @ axes


def assert_uniform(p, num_reference=10_000):
    """Check P(p <= .05, .1, .2) over runs [R, N], to 3 standard errors and .01; p are multiples of 1 / (n + 1).

    It may be a quarter too low: with 10 cases, p-values are a little too large.
    """
    below = (np.asarray(p)[..., None] <= LEVELS).mean(axis=1)
    error = below.std(axis=0, ddof=1) / np.sqrt(len(below))
    expected = np.floor(LEVELS * (num_reference + 1)) / (num_reference + 1)
    assert (below.mean(axis=0) <= expected + 3 * error + 0.01).all(), (below.mean(axis=0), error)
    assert (below.mean(axis=0) >= 0.75 * expected - 3 * error).all(), (below.mean(axis=0), error)


@pytest.mark.parametrize(("patients", "scans", "runs"), [(10, 1, 100), (30, 1, 60), (100, 1, 30), (30, 3, 40)])
def test_outlier_p_values_of_cases_like_the_training_cases_are_uniform(patients, scans, runs, tmp_path):
    """Standard errors: .005 to .015. When training cases shrank their own distances, P(p <= .1) was .35 for n = 10."""
    p = {"p_distance": [], "p_whitened": []}
    columns = {"patient": np.r_[np.repeat(range(patients), scans), 1000:1060]}
    columns["split"] = np.where(columns["patient"] < 1000, "train", "test")
    for seed in range(runs):
        generator = np.random.default_rng(seed)
        z = np.concatenate([codes(generator, patients, scans), codes(generator, 60)])
        table = pd.DataFrame({"id": [f"c{i:03d}" for i in range(len(z))], **columns})
        table = table.join(pd.DataFrame(z, columns=[f"z_{i:03d}" for i in range(z.shape[1])]))
        table.to_csv(tmp_path / f"{seed}.csv", index=False)
        neighbors(tmp_path / f"{seed}.csv", tmp_path / f"{seed}", split="test")
        outliers = pd.read_csv(tmp_path / f"{seed}" / "outliers.csv")
        for name, values in p.items():
            values.append(outliers[name].to_numpy())
    for values in p.values():
        assert_uniform(values, patients * scans)


@pytest.mark.parametrize(("patients", "scans"), [(3, 1), (10, 1), (30, 1), (100, 1), (10, 3)])
def test_one_of_twenty_differences_between_equal_models_has_an_interval_without_0(patients, scans):
    """The p-values of the intervals of evaluate and compare. Standard errors of 200 runs: .015 at .05, .03 at .2.

    A percentile bootstrap excluded the truth in 25 % (3 patients), 8 to 10 % (10) and 7 % (30).
    """
    p, owners = [], {f"c{i}": f"p{i // scans}" for i in range(patients * scans)}
    for seed in range(200):
        error, difference = (codes(np.random.default_rng([seed, i]), patients, scans, dims=1)[:, 0] for i in range(2))
        rows = [
            {"table": "reconstruction", "bundle": bundle, "id": name, "mse": value}
            for bundle, values in (("a", error), ("b", error + difference))
            for name, value in zip(owners, values, strict=True)
        ]
        (row,) = difference_rows(rows, "a", owners)
        t = row["value"] / (row["high"] - row["value"]) * stats.t.ppf(0.975, patients - 1)
        p.append([2 * stats.t.sf(abs(t), patients - 1)])
    assert_uniform(p)


def test_codes_of_noise_are_not_disentangled():
    """Each of six factors passes with a probability of .01, so .06 of runs have any; standard error of 40 runs: .04."""
    scores = []
    for seed in range(40):
        z, unseen_z = np.random.default_rng(seed).normal(size=(2, 50, 22))
        scores.append(dci(z[:, 6:], z[:, :6], unseen_z[:, 6:], unseen_z[:, :6]).disentanglement)
    assert np.mean(np.array(scores) > 0) <= 0.06 + 3 * 0.04
