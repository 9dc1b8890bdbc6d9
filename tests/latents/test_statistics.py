import logging

import numpy as np
import pytest
import torch

from monai_diffae.errors import ConfigError
from monai_diffae.latents.statistics import LatentStatistics
from monai_diffae.networks import LatentMLP


@pytest.fixture
def z():
    generator = np.random.default_rng(0)
    return (generator.normal(size=(300, 5)) * [1, 10, 0.1, 3, 1e-3] + [0, 5, -2, 100, 1]).astype(np.float32)


def test_normalised_training_set_has_mean_zero_and_std_one(z):
    normalised = LatentStatistics.of(z).normalise(z)
    assert normalised.dtype == np.float32
    np.testing.assert_allclose(normalised.mean(axis=0), 0, atol=1e-3)  # 1 +- 1e-3 in float32
    np.testing.assert_allclose(normalised.std(axis=0), 1, atol=1e-3)


def test_is_what_scikit_learn_computes(z):
    from sklearn.preprocessing import StandardScaler

    wide = z.astype(np.float64)
    np.testing.assert_allclose(
        LatentStatistics.of(z).normalise(wide), StandardScaler().fit_transform(wide), rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize("rows", [slice(None), 7])
def test_denormalising_is_the_inverse(z, rows):
    statistics = LatentStatistics.of(z)
    again = statistics.denormalise(statistics.normalise(z[rows]))
    assert again.shape == z[rows].shape
    np.testing.assert_allclose(again, z[rows], rtol=1e-5, atol=1e-6)


def test_agrees_with_the_latent_network(z):
    statistics, network = LatentStatistics.of(z), LatentMLP(z_channels=5, hidden_channels=8, num_layers=2)
    network.set_statistics(torch.from_numpy(statistics.mean), torch.from_numpy(statistics.std))
    np.testing.assert_allclose(statistics.normalise(z), network.normalise(torch.from_numpy(z)).numpy(), rtol=1e-6)


def test_moving_is_a_step_in_normalised_z(z):
    statistics, step = LatentStatistics.of(z), np.array([0.5, 0, -2, 1, 0])
    moved = statistics.moved(z, step)
    expected = statistics.denormalise(statistics.normalise(z.astype(np.float64)) + step)
    np.testing.assert_allclose(moved, expected, rtol=1e-5)
    np.testing.assert_array_equal(moved[:, [1, 4]].view(np.uint32), z[:, [1, 4]].view(np.uint32))


@pytest.mark.parametrize("noise", [0, 1e-8])
def test_dimensions_that_never_vary_are_left_alone(z, noise, caplog):
    z = z.astype(np.float64)
    z[:, 2] = 0.1 + noise * np.random.default_rng(1).normal(size=len(z))
    with caplog.at_level(logging.WARNING):
        statistics = LatentStatistics.of(z)
    assert statistics.std[2] == 1
    assert "1 of 5 dimensions" in caplog.text
    assert np.abs(statistics.normalise(z)[:, 2]).max() < 1e-6


def test_small_dimensions_that_vary_are_kept(z):
    np.testing.assert_allclose(LatentStatistics.of(z * 1e-6).std, z.std(axis=0) * 1e-6, rtol=1e-4)


@pytest.mark.parametrize(("given", "expected"), [("f2", "f4"), ("f4", "f4"), ("f8", "f8")])
def test_half_precision_is_widened_since_its_range_and_digits_are_too_few(z, given, expected):
    statistics = LatentStatistics.of(z)
    codes = z.astype(given)
    for run in (statistics.normalise, statistics.denormalise):
        assert run(codes).dtype == np.dtype(expected)
    assert statistics.moved(codes, np.ones(5)).dtype == codes.dtype
    np.testing.assert_array_equal(statistics.normalise(codes), statistics.normalise(codes.astype(expected)))


@pytest.mark.parametrize(
    ("z", "message"),
    [
        (np.ones((1, 3)), "1 cases are too few"),
        (np.ones(3), r"\(3,\); \(N, D\)"),
        (np.ones((4, 0)), r"\(4, 0\)"),
        (np.ones((4, 2, 2)), r"\(4, 2, 2\)"),
        (np.array([[1.0, 2.0], [np.nan, 1.0], [3.0, np.inf]]), "2 of 3 cases hold values that are not finite"),
        (np.array([["a", "b"], ["c", "d"]]), "not numbers"),
        (np.full((4, 3), 0.1), "same for all 4 cases"),
        (np.array([[1e300, 1.0], [-1e300, 2.0]]), "not finite"),
    ],
)
def test_z_that_has_no_statistics_is_refused(z, message):
    with pytest.raises(ConfigError, match=message):
        LatentStatistics.of(z)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        (np.zeros(3), np.ones(2), "both must be"),
        (np.zeros((1, 3)), np.ones((1, 3)), "both must be"),
        (np.zeros(2), np.array([1.0, 0.0]), "above 0"),
        (np.zeros(2), np.array([1.0, -1.0]), "above 0"),
        (np.array([np.nan, 0]), np.ones(2), "not finite"),
    ],
)
def test_values_that_are_no_statistics_are_refused(mean, std, message):
    with pytest.raises(ConfigError, match=message):
        LatentStatistics(mean, std)


def test_z_of_another_size_or_not_finite_is_refused(z):
    statistics = LatentStatistics.of(z)
    for run in (statistics.normalise, statistics.denormalise, lambda z: statistics.moved(z, np.ones(5))):
        with pytest.raises(ConfigError, match="z_sem of the same model"):
            run(z[:, :4])
        with pytest.raises(ConfigError, match="1 of 1 cases"):
            run(np.full(5, np.nan))


def test_the_training_set_has_a_mean_deviation_of_one(z):
    statistics = LatentStatistics.of(z)
    assert statistics.deviations(z).mean() == pytest.approx(1, rel=1e-5)
    assert statistics.deviations(z + 3 * statistics.std).mean() == pytest.approx(10, rel=1e-5)
