"""What two representations share: planted factors, noise, and independent implementations."""

import numpy as np
import pytest

from monai_diffae.latents.representation import canonical_correlations, explained_variance, linear_cka, procrustes

RNG = np.random.default_rng(0)
PATIENTS = np.repeat([f"p{i}" for i in range(150)], 2)
SHARED = RNG.normal(size=(300, 3))
FIRST = np.column_stack([SHARED @ RNG.normal(size=(3, 3)), RNG.normal(size=(300, 2))])
SECOND = np.column_stack([RNG.normal(size=(300, 3)), SHARED @ RNG.normal(size=(3, 3))])


def test_planted_factors_are_shared_and_noise_is_not():
    value, low, high = explained_variance(FIRST, SECOND, PATIENTS)
    assert (low[:3] > 0.95).all()
    assert (high[3:5] < 0.1).all()
    assert (low <= value).all()
    canonical = canonical_correlations(FIRST, SECOND, PATIENTS, (5, 6))
    assert (canonical[0, :3] > 0.95).all()
    assert (canonical[1, 3:] < 0.1).all()
    assert (canonical[2, 3:] > -0.1).all()


def test_more_dimensions_than_patients_explain_nothing_by_chance():
    noise, cases = RNG.normal(size=(60, 200)), np.arange(60)
    assert explained_variance(FIRST[:60], noise, cases)[0, -1] < 0.05
    assert canonical_correlations(FIRST[:60], noise, cases, (5, 5))[0, 0] < 0.4
    assert abs(linear_cka(FIRST[:60], noise)) < 0.1


def test_a_rotation_changes_nothing():
    rotation = np.linalg.qr(RNG.normal(size=(5, 5)))[0]
    turned = 3 * FIRST @ rotation + 7
    assert procrustes(FIRST, turned, PATIENTS) == pytest.approx(1)
    assert linear_cka(FIRST, turned) == pytest.approx(1)
    stretched = turned * [1, 5, 1, 1, 1]
    assert procrustes(FIRST, stretched, PATIENTS)[0] < 0.9
    assert explained_variance(FIRST, stretched, PATIENTS)[1, -1] > 0.999


def test_cka_is_the_unbiased_estimate_of_whole_matrices():
    def hsic(k, m):
        k, m = (each - np.diag(np.diag(each)) for each in (k, m))
        n, one = len(k), np.ones(len(k))
        products = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
        return np.trace(k @ m) + products - 2 * one @ k @ m @ one / (n - 2)

    grams = [each @ each.T for each in (FIRST - FIRST.mean(axis=0), SECOND - SECOND.mean(axis=0))]
    expected = hsic(*grams) / np.sqrt(hsic(grams[0], grams[0]) * hsic(grams[1], grams[1]))
    assert linear_cka(FIRST, SECOND) == pytest.approx(expected)
