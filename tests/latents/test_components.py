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
def found(z):
    return principal_components(z, LatentStatistics.of(z), 4)


def test_are_the_eigenvectors_of_the_correlation_matrix(z, found):
    values, vectors = np.linalg.eigh(np.corrcoef(z.astype(np.float64).T))
    values, vectors = values[::-1][:4], vectors.T[::-1][:4]
    np.testing.assert_allclose(found.directions @ found.directions.T, np.eye(4), atol=1e-10)
    np.testing.assert_allclose(np.abs(np.sum(found.directions * vectors, axis=1)), 1, atol=1e-6)
    np.testing.assert_allclose(found.spreads, np.sqrt(values), rtol=1e-5)
    np.testing.assert_allclose(found.explained, values / 8, rtol=1e-5)


def test_spreads_are_standard_deviations_of_the_cases(z, found):
    along = found.statistics.normalise(z.astype(np.float64)) @ found.directions.T
    np.testing.assert_allclose(found.spreads, along.std(axis=0), rtol=1e-9)


def test_signs_depend_on_nothing_but_the_subspace(z, found):
    assert (found.directions[np.arange(4), np.abs(found.directions).argmax(axis=1)] > 0).all()
    again = principal_components(z[::-1], found.statistics, 4)
    np.testing.assert_allclose(again.directions, found.directions, atol=1e-6)


def test_walk_goes_by_standard_deviations_and_starts_at_the_case(z, found):
    amounts = [-2.0, 0.0, 1.0]
    walked = found.walk(z[4], 1, amounts)
    assert walked.dtype == z.dtype
    np.testing.assert_array_equal(walked[1], z[4])
    along = found.statistics.normalise(walked.astype(np.float64)) @ found.directions.T
    np.testing.assert_allclose(along - along[1], np.outer(amounts, found.spreads * [0, 1, 0, 0]), atol=1e-5)
    np.testing.assert_array_equal(found.walk(z[4:5], 1, amounts), walked)


@pytest.mark.parametrize("count", [0, 9])
def test_more_components_than_there_are_is_refused(z, count):
    with pytest.raises(ConfigError, match="choose 1 to 8"):
        principal_components(z, LatentStatistics.of(z), count)
    with pytest.raises(ConfigError, match="choose 1 to 2"):
        principal_components(z[:3], LatentStatistics.of(z), 3)


def test_walks_that_cannot_be_gone_are_refused(z, found):
    for start, component, amounts, message in [
        (z[0], 4, [1], "not one of 0 to 3"),
        (z[0], 0, [np.nan], "finite"),
        (z[:2], 0, [1], "not from 2"),
        (z[0, :5], 0, [1], "same model"),
    ]:
        with pytest.raises(ConfigError, match=message):
            found.walk(start, component, amounts)
