"""p-values and intervals on simulated codes, where the truth is known. Each bound is stated with its Monte Carlo error.

With R independent runs, a share s has the standard error ``sqrt(s (1 - s) / R)``. Cases of one run share their training
set, so the standard error of a mean over runs is computed from the runs.
"""

import numpy as np
import pytest

from monai_diffae.latents import outlier_scores

pytestmark = pytest.mark.slow

LEVELS = np.array([0.05, 0.1, 0.2])


def codes(generator, patients, scans=1, dims=48):
    """Codes of patients [N, D] with a spectrum 1 / sqrt(k), rotated; scans of a patient have a correlation of .7."""
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(dims, dims)))[0] / np.arange(1, dims + 1)[:, None] ** 0.25
    own = np.repeat(generator.normal(size=(patients, dims)), scans, axis=0)
    z = np.sqrt(0.7) * own + np.sqrt(0.3) * generator.normal(size=own.shape)
    return z @ axes, np.repeat(np.arange(patients), scans)


def mean_and_error(runs):
    return np.mean(runs, axis=0), np.std(runs, axis=0, ddof=1) / np.sqrt(len(runs))


@pytest.mark.parametrize("whitened", [False, True])
@pytest.mark.parametrize(("patients", "scans", "runs"), [(10, 1, 400), (30, 1, 200), (100, 1, 100), (30, 3, 100)])
def test_outlier_p_values_of_cases_like_the_reference_are_uniform(patients, scans, runs, whitened):
    shares = []
    for seed in range(runs):
        generator = np.random.default_rng(seed)
        reference, groups = codes(generator, patients, scans)
        new, _ = codes(generator, 60)
        p = outlier_scores(new, reference, reference_groups=groups, whitened=whitened).p_values
        shares.append((p[:, None] <= LEVELS).mean(axis=0))
    mean, error = mean_and_error(shares)
    print(patients, scans, whitened, mean.round(3), error.round(3))
    reachable = np.floor(LEVELS * (patients * scans + 1)) / (patients * scans + 1)
    assert (mean < reachable + 3 * error + 0.01).all()
    assert (mean > reachable - 3 * error - 0.01).all()
