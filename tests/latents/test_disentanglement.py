import numpy as np
import pytest

from monai_diffae.errors import ConfigError
from monai_diffae.latents import dci
from monai_diffae.latents.disentanglement import scores_of_importance


@pytest.fixture
def factors():
    return np.random.default_rng(0).uniform(size=(400, 4))


def measured(z, factors):
    return dci(z[:200], factors[:200], z[200:], factors[200:])


def test_a_dimension_for_each_factor_in_any_order_and_scale(factors):
    noise = 1e-3 * np.random.default_rng(1).normal(size=(400, 4))
    result = measured(np.concatenate([factors[:, ::-1] * [1, -10, 3, 0.1] + noise], axis=1), factors)
    assert min(result.disentanglement, result.completeness, result.informativeness) > 0.97


def test_a_rotation_keeps_the_information_and_loses_the_rest(factors):
    rotation, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(4, 4)))
    result = measured(factors @ rotation, factors)
    assert result.informativeness > 0.97
    assert result.disentanglement < 0.6
    assert result.completeness < 0.6


def test_noise_informs_of_nothing(factors):
    result = measured(np.random.default_rng(3).normal(size=(400, 8)), factors)
    assert result.informativeness == pytest.approx(0, abs=0.1)


def test_the_scores_are_those_of_the_definition():
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


def test_what_cannot_be_measured(factors):
    with pytest.raises(ConfigError, match="at least two"):
        measured(factors, factors[:, :1])
    with pytest.raises(ConfigError, match="the same for all"):
        measured(factors, factors * [0, 1, 1, 1])
