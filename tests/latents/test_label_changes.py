"""How often a label changes, against counts and an exact interval."""

import numpy as np
import pytest
from scipy.stats import binomtest

from monai_diffae.latents import fit_direction
from monai_diffae.latents.label_changes import label_change


@pytest.mark.parametrize("num", [20, 13, 0])
def test_flips_are_counted_beyond_random_changes_with_an_exact_interval(num):
    z = np.random.default_rng(0).normal(size=(200, 3))
    sick = fit_direction(z, z[:, 0] > 0, target="sick", model="a" * 64)
    few, towards = z[:20], -np.sign(z[:20, 0])
    after = few.copy()
    after[:num, 0] += 4 * towards[:num]
    found = label_change(sick, few, after, few[:, None], range(20), towards=towards)
    exact = binomtest(num, 20).proportion_ci(method="exact")
    assert (found.num_changed, found.num_cases, found.random_share) == (num, 20, 0.0)
    np.testing.assert_allclose([found.low, found.high], [exact.low, exact.high], atol=1e-9)
    assert (found.excess_low > 0) == (num > 0)
    twice = label_change(sick, *(np.repeat(each, 2, 0) for each in (few, after, few[:, None])), [*range(20)] * 2,
                         towards=np.repeat(towards, 2))  # fmt: skip
    assert (twice.low, twice.high) == (found.low, found.high)
