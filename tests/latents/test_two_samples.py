"""Two-sample tests of z_sem, and whether samples copy the training set."""

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import cdist, pdist

from monai_diffae.errors import ConfigError
from monai_diffae.latents import two_samples
from monai_diffae.latents.two_samples import (
    copying_ratio,
    difference_interval,
    energy_distance,
    mmd,
    nearest_distances,
    permutation_test,
)


def normal(seed, *shape, shift=0.0):
    return np.random.default_rng(seed).normal(size=shape) + shift


def test_distances_are_those_of_scipy():
    a, b = normal(0, 70, 6), normal(1, 50, 6, shift=0.4)
    expected = 2 * cdist(a, b).mean() - pdist(a).mean() - pdist(b).mean()
    assert energy_distance(a, b) == pytest.approx(expected, rel=1e-9)
    a, b = normal(0, 70, 1), normal(1, 50, 1, shift=0.4)
    bias = pdist(a).mean() / 70 + pdist(b).mean() / 50  # scipy's counts each case with itself, too
    assert energy_distance(a, b) == pytest.approx(stats.energy_distance(a[:, 0], b[:, 0]) ** 2 - bias, abs=1e-10)
    a, b = normal(0, 40, 20, shift=1000), normal(1, 60, 20, shift=1000)
    np.testing.assert_allclose(nearest_distances(a, b), cdist(a, b).min(axis=1), rtol=1e-9)
    np.testing.assert_array_equal(nearest_distances(b[:5], b), 0)


def test_mmd_is_that_of_scikit_learns_kernel():
    from sklearn.metrics.pairwise import rbf_kernel

    a, b, bandwidth = normal(0, 70, 6), normal(1, 50, 6, shift=0.4), 1.7
    gamma = 1 / (2 * bandwidth**2)
    off_diagonal = [(k.sum() - len(k)) / (len(k) * (len(k) - 1)) for k in (rbf_kernel(z, gamma=gamma) for z in (a, b))]
    expected = sum(off_diagonal) - 2 * rbf_kernel(a, b, gamma=gamma).mean()
    assert mmd(a, b, bandwidth) == pytest.approx(expected, rel=1e-9)
    assert mmd(a, b) == pytest.approx(mmd(a, b, np.median(pdist(np.concatenate([a, b])))))


@pytest.mark.parametrize("distance", [energy_distance, mmd])
def test_distances_are_without_bias_whatever_the_sizes(distance):
    values = [distance(normal(2 * i, 12, 3), normal(2 * i + 1, 30, 3)) for i in range(300)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values))
    assert min(values) < 0 < distance(normal(0, 12, 3), normal(1, 30, 3, shift=2))


@pytest.mark.parametrize("statistic", ["energy", "mmd"])
def test_p_values_are_uniform_where_the_distributions_are_the_same(statistic):
    p_values = [
        permutation_test(statistic, normal(2 * i, 20, 3), normal(2 * i + 1, 15, 3), num=49, seed=i).p_value
        for i in range(100)
    ]
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


@pytest.mark.parametrize("statistic", ["energy", "mmd"])
def test_a_shift_and_another_scale_are_found(statistic):
    a = normal(0, 150, 4)
    for other in (normal(1, 150, 4, shift=0.6), normal(1, 150, 4) * 2):
        result = permutation_test(statistic, a, other, num=199)
        assert result.p_value == 1 / 200
        assert result.null_low < 0 < result.null_high < result.value


def test_permutations_are_those_of_the_plain_loop_whatever_the_blocks(monkeypatch):
    a, b = normal(0, 12, 2), normal(1, 8, 2, shift=0.5)
    pooled, generator = np.concatenate([a, b]), np.random.default_rng(3)
    null = []
    for _ in range(2000):
        order = generator.permutation(20)
        null.append(energy_distance(pooled[order[:12]], pooled[order[12:]]))
    result = permutation_test("energy", a, b, num=2000)
    monkeypatch.setattr(two_samples, "_BLOCK_MIB", 1e-3)
    assert permutation_test("energy", a, b, num=2000).value == pytest.approx(result.value, rel=1e-9)
    assert result.value == pytest.approx(energy_distance(a, b))
    assert result.p_value == pytest.approx(np.mean(np.array(null) >= result.value), abs=0.03)
    np.testing.assert_allclose([result.null_low, result.null_high], np.percentile(null, [2.5, 97.5]), atol=0.05)


def test_equal_samples_have_no_small_p_value_and_a_seed_gives_the_same_test():
    a, b = normal(0, 40, 3), normal(1, 40, 3)
    assert permutation_test("energy", a, a, num=99).p_value > 0.9
    assert permutation_test("energy", np.ones((10, 2)), np.ones((10, 2)), num=99).p_value == 1
    first, again, other = (permutation_test("energy", a, b, num=50, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("statistic", ["energy", "mmd"])
def test_difference_is_below_zero_where_the_first_is_nearer(statistic):
    reference, near, far = normal(0, 150, 4), normal(1, 120, 4), normal(2, 90, 4, shift=0.7)
    result = difference_interval(reference, near, far, statistic, num=200)
    assert result.low < result.value < result.high < 0
    swapped = difference_interval(reference, far, near, statistic, num=200)
    assert swapped.value == pytest.approx(-result.value)
    assert swapped.low > 0
    if statistic == "energy":
        assert result.value == pytest.approx(energy_distance(near, reference) - energy_distance(far, reference))


def test_interval_of_the_difference_holds_the_truth_about_95_times_in_100():
    # the energy distances of large samples stand for the truth
    truth = energy_distance(normal(0, 3000, 2, shift=0.5), normal(1, 3000, 2)) - energy_distance(
        normal(2, 3000, 2, shift=1.0), normal(1, 3000, 2)
    )
    held = []
    for i in range(100):
        samples = normal(3 * i, 60, 2), normal(3 * i + 1, 60, 2, shift=0.5), normal(3 * i + 2, 60, 2, shift=1.0)
        result = difference_interval(*samples, num=150, seed=i)
        held.append(result.low <= truth <= result.high)
    assert 0.87 <= np.mean(held) <= 1


def test_copies_are_told_from_new_samples():
    train, held_out, new = normal(0, 300, 8), normal(1, 200, 8), normal(2, 200, 8)
    assert copying_ratio(new, train, held_out) == pytest.approx(1, abs=0.15)
    assert copying_ratio(train[:100] + 0.01 * normal(3, 100, 8), train, held_out) < 0.05
    with pytest.raises(ConfigError, match="in the training set"):
        copying_ratio(new, train, train[:50])
