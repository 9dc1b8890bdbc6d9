"""Statistics of z_sem: scaling, whitening, components, and how many dimensions are used."""

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler

from monai_diffae.errors import ConfigError
from monai_diffae.latents import LatentStatistics, active_dimensions, dci, principal_components
from monai_diffae.latents.representation import scores_of_importance
from monai_diffae.latents.statistics import whitening
from monai_diffae.networks import LatentMLP


@pytest.fixture
def z():
    generator = np.random.default_rng(0)
    return (generator.normal(size=(300, 5)) * [1, 10, 0.1, 3, 1e-3] + [0, 5, -2, 100, 1]).astype(np.float32)


def test_normalised_z_is_that_of_scikit_learn_and_of_the_latent_network_and_comes_back(z):
    statistics, wide = LatentStatistics.of(z), z.astype(np.float64)
    normalised = statistics.normalise(z)
    assert normalised.dtype == np.float32
    np.testing.assert_allclose(statistics.normalise(wide), StandardScaler().fit_transform(wide), rtol=1e-4, atol=1e-3)
    network = LatentMLP(z_channels=5, hidden_channels=8, num_layers=2)
    network.set_statistics(torch.from_numpy(statistics.mean), torch.from_numpy(statistics.std))
    np.testing.assert_allclose(normalised, network.normalise(torch.from_numpy(z)).numpy(), rtol=1e-6)
    np.testing.assert_allclose(statistics.denormalise(normalised), z, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(statistics.denormalise(normalised[7]), z[7], rtol=1e-5, atol=1e-6)


def test_dimensions_that_never_vary_are_left_alone_and_small_ones_are_not(z, caplog):
    np.testing.assert_allclose(LatentStatistics.of(z * 1e-6).std, z.std(axis=0) * 1e-6, rtol=1e-4)
    z = z.astype(np.float64)
    for noise in (0, 1e-8):
        z[:, 2] = 0.1 + noise * np.random.default_rng(1).normal(size=len(z))
        statistics = LatentStatistics.of(z)
        assert statistics.std[2] == 1
        assert np.abs(statistics.normalise(z)[:, 2]).max() < 1e-6
    assert caplog.text.count("1 of 5 dimensions") == 2


def test_the_training_set_has_a_mean_deviation_of_one(z):
    statistics = LatentStatistics.of(z)
    assert statistics.deviations(z).mean() == pytest.approx(1, rel=1e-5)
    assert statistics.deviations(z + 3 * statistics.std).mean() == pytest.approx(10, rel=1e-5)


def test_whitened_directions_vary_alike_but_those_that_hardly_vary():
    generator = np.random.default_rng(0)
    z = generator.normal(size=(5000, 6)) * [3, 1, 1, 0.5, 1e-3, 0]
    z = z @ np.linalg.qr(generator.normal(size=(6, 6)))[0]
    variances = np.sort(np.linalg.eigvalsh(np.cov(z @ whitening(z), rowvar=False)))
    np.testing.assert_allclose(variances[2:], 1, atol=0.06)
    assert (variances[:2] < 0.01).all()
    # what lies across the others is seen
    axes = whitening(generator.normal(size=(500, 1)) * [1.0, 1.0])
    assert np.linalg.norm([0.3, -0.3] @ axes) > 5 * np.linalg.norm([0.3, 0.3] @ axes)
    assert np.isfinite(whitening(np.ones((1, 4)))).all()


def test_dimensions_that_vary_are_active_and_copies_explain_nothing_more():
    generator = np.random.default_rng(0)
    found = active_dimensions(generator.normal(size=(20_000, 16)) + 1e3)
    assert (found.dims, found.active, found.dims_for_95_percent) == (16, 16, 16)
    assert found.participation_ratio == pytest.approx(16, rel=0.01)
    line = generator.normal(size=(100, 1)) * np.ones(5)
    found = active_dimensions(np.concatenate([line, np.full((100, 3), 7.0)], axis=1))
    assert (found.dims, found.active, found.dims_for_95_percent) == (8, 5, 1)
    assert found.participation_ratio == pytest.approx(1)
    small = generator.normal(size=(500, 4)) * [1, 1, 1, 0.05]
    assert [active_dimensions(small * scale).active for scale in (1e-6, 1.0, 1e6)] == [3, 3, 3]
    same = active_dimensions(np.ones((5, 3)))
    assert (same.active, same.participation_ratio, same.dims_for_95_percent) == (0, 0, 0)


@pytest.fixture(scope="module")
def mixed_z():
    generator = np.random.default_rng(0)
    mixing = generator.normal(size=(3, 8)) * [[5], [2], [1]]
    return (generator.normal(size=(500, 3)) @ mixing + generator.normal(size=(500, 8)) + 3).astype(np.float32)


@pytest.fixture(scope="module")
def components(mixed_z):
    return principal_components(mixed_z, LatentStatistics.of(mixed_z), 4)


def test_components_are_the_eigenvectors_of_the_correlation_matrix(mixed_z, components):
    values, vectors = np.linalg.eigh(np.corrcoef(mixed_z.astype(np.float64).T))
    values, vectors = values[::-1][:4], vectors.T[::-1][:4]
    np.testing.assert_allclose(components.directions @ components.directions.T, np.eye(4), atol=1e-10)
    np.testing.assert_allclose(np.abs(np.sum(components.directions * vectors, axis=1)), 1, atol=1e-6)
    np.testing.assert_allclose(components.explained, values / 8, rtol=1e-5)
    # standard deviations of the cases, not variances
    np.testing.assert_allclose(components.stds, np.sqrt(values), rtol=1e-5)
    along = components.statistics.normalise(mixed_z.astype(np.float64)) @ components.directions.T
    np.testing.assert_allclose(components.stds, along.std(axis=0), rtol=1e-9)
    # signs depend on nothing but the subspace
    assert (components.directions[np.arange(4), np.abs(components.directions).argmax(axis=1)] > 0).all()
    again = principal_components(mixed_z[::-1], components.statistics, 4)
    np.testing.assert_allclose(again.directions, components.directions, atol=1e-6)
    with pytest.raises(ConfigError, match="choose 1 to 2"):
        principal_components(mixed_z[:3], LatentStatistics.of(mixed_z), 3)


def test_a_traversal_goes_by_standard_deviations_and_starts_at_the_case(mixed_z, components):
    strengths = [-2.0, 0.0, 1.0]
    traversed = components.traverse(mixed_z[4], 1, strengths)
    assert traversed.dtype == mixed_z.dtype
    np.testing.assert_array_equal(traversed[1], mixed_z[4])
    along = components.statistics.normalise(traversed.astype(np.float64)) @ components.directions.T
    np.testing.assert_allclose(along - along[1], np.outer(strengths, components.stds * [0, 1, 0, 0]), atol=1e-5)
    np.testing.assert_array_equal(components.traverse(mixed_z[4:5], 1, strengths), traversed)
    with pytest.raises(ConfigError, match="^component: -1 is not one of 0 to 3"):
        components.traverse(mixed_z[4], -1, strengths)


def measured(z, factors):
    return dci(z[:200], factors[:200], z[200:], factors[200:])


def test_disentanglement_of_factors_in_any_order_of_rotated_ones_and_of_noise():
    factors = np.random.default_rng(0).uniform(size=(400, 4))
    rng = np.random.default_rng(1)
    noise = 1e-3 * rng.normal(size=(400, 4))
    each = measured(np.concatenate([factors[:, ::-1] * [1, -10, 3, 0.1] + noise], axis=1), factors)
    assert min(each.disentanglement, each.completeness, each.informativeness) > 0.97
    rotated = measured(factors @ np.linalg.qr(np.random.default_rng(2).normal(size=(4, 4)))[0], factors)
    assert rotated.informativeness > 0.97
    assert max(rotated.disentanglement, rotated.completeness) < 0.6
    nothing = measured(rng.normal(size=(400, 8)), factors)  # coefficients that noise leaves are no disentanglement
    assert (nothing.disentanglement, nothing.completeness) == (0, 0)
    assert nothing.informativeness == pytest.approx(0, abs=0.1)
    with pytest.raises(ConfigError, match="the same for all"):
        measured(factors, factors * [0, 1, 1, 1])


def test_scores_of_disentanglement_are_those_of_the_definition():
    importance = np.random.default_rng(0).uniform(size=(6, 3)) ** 4
    rows = importance / importance.sum(axis=1, keepdims=True)
    of_dimensions = [1 + sum(p * np.log(p) / np.log(3) for p in row) for row in rows]
    weights = importance.sum(axis=1) / importance.sum()
    columns = importance / importance.sum(axis=0)
    of_factors = [1 + sum(p * np.log(p) / np.log(6) for p in column) for column in columns.T]
    expected = np.dot(weights, of_dimensions), np.mean(of_factors)
    assert scores_of_importance(importance) == pytest.approx(expected, abs=1e-12)
    assert scores_of_importance(np.eye(3)) == (1, 1)
    assert scores_of_importance(np.ones((5, 3))) == pytest.approx((0, 0), abs=1e-12)
    assert scores_of_importance(np.zeros((5, 3))) == (0, 0)
