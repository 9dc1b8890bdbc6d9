import numpy as np
import pytest

from monai_diffae.errors import ConfigError
from monai_diffae.latents.components import principal_components
from monai_diffae.latents.statistics import LatentStatistics


@pytest.fixture(scope="module")
def z():
    generator = np.random.default_rng(0)
    mixing = generator.normal(size=(3, 8)) * [[5], [2], [1]]
    return (generator.normal(size=(500, 3)) @ mixing + generator.normal(size=(500, 8)) + 3).astype(np.float32)


@pytest.fixture(scope="module")
def components(z):
    return principal_components(z, LatentStatistics.of(z), 4)


def test_are_the_eigenvectors_of_the_correlation_matrix(z, components):
    values, vectors = np.linalg.eigh(np.corrcoef(z.astype(np.float64).T))
    values, vectors = values[::-1][:4], vectors.T[::-1][:4]
    np.testing.assert_allclose(components.directions @ components.directions.T, np.eye(4), atol=1e-10)
    np.testing.assert_allclose(np.abs(np.sum(components.directions * vectors, axis=1)), 1, atol=1e-6)
    np.testing.assert_allclose(components.stds, np.sqrt(values), rtol=1e-5)
    np.testing.assert_allclose(components.explained, values / 8, rtol=1e-5)


def test_stds_are_standard_deviations_of_the_cases(z, components):
    along = components.statistics.normalise(z.astype(np.float64)) @ components.directions.T
    np.testing.assert_allclose(components.stds, along.std(axis=0), rtol=1e-9)


def test_signs_depend_on_nothing_but_the_subspace(z, components):
    assert (components.directions[np.arange(4), np.abs(components.directions).argmax(axis=1)] > 0).all()
    again = principal_components(z[::-1], components.statistics, 4)
    np.testing.assert_allclose(again.directions, components.directions, atol=1e-6)


def test_a_traversal_goes_by_standard_deviations_and_starts_at_the_case(z, components):
    strengths = [-2.0, 0.0, 1.0]
    traversed = components.traverse(z[4], 1, strengths)
    assert traversed.dtype == z.dtype
    np.testing.assert_array_equal(traversed[1], z[4])
    along = components.statistics.normalise(traversed.astype(np.float64)) @ components.directions.T
    np.testing.assert_allclose(along - along[1], np.outer(strengths, components.stds * [0, 1, 0, 0]), atol=1e-5)
    np.testing.assert_array_equal(components.traverse(z[4:5], 1, strengths), traversed)


@pytest.mark.parametrize("count", [0, 9])
def test_more_components_than_there_are_is_refused(z, count):
    with pytest.raises(ConfigError, match="choose 1 to 8"):
        principal_components(z, LatentStatistics.of(z), count)
    with pytest.raises(ConfigError, match="choose 1 to 2"):
        principal_components(z[:3], LatentStatistics.of(z), 3)


def test_impossible_traversals_are_refused(z, components):
    for start, component, strengths, message in [
        (z[0], 4, [1], "not one of 0 to 3"),
        (z[0], 0, [np.nan], "finite"),
        (z[:2], 0, [1], "not from 2"),
        (z[0, :5], 0, [1], "same model"),
    ]:
        with pytest.raises(ConfigError, match=message):
            components.traverse(start, component, strengths)
