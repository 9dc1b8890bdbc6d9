"""How often a label changes, against counts and an exact interval."""

import numpy as np
import pytest
from scipy.stats import binomtest

from monai_diffae.latents import fit_direction
from monai_diffae.latents.label_changes import label_change

Z = np.random.default_rng(0).normal(size=(200, 3))


@pytest.fixture(scope="module")
def sick():
    return fit_direction(Z, Z[:, 0] > 0, target="sick", model="a" * 64)


@pytest.mark.parametrize("num", [20, 13, 0])
def test_flips_are_counted_beyond_random_changes_with_an_exact_interval(sick, num):
    few, towards = Z[:20], -np.sign(Z[:20, 0])
    after = few.copy()
    after[:num, 0] += 4 * towards[:num]
    codes = np.stack([few, after, few], axis=1)
    found = label_change(sick, codes, range(20), towards=towards)
    exact = binomtest(num, 20).proportion_ci(method="exact")
    assert (found.num_changed, found.num_cases, found.random_share) == (num, 20, 0.0)
    np.testing.assert_allclose([found.low, found.high], [exact.low, exact.high], atol=1e-9)
    assert (found.excess_low > 0) == (num > 0)
    two_each = np.repeat(codes, 2, axis=0)
    twice = label_change(sick, two_each, np.repeat(range(20), 2), towards=np.repeat(towards, 2))
    assert (twice.low, twice.high) == (found.low, found.high)
