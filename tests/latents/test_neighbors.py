import numpy as np
import pytest

from monai_diffae.errors import ConfigError
from monai_diffae.latents.neighbors import nearest_neighbors, p_values


@pytest.fixture
def codes():
    generator = np.random.default_rng(0)
    groups = np.array([f"p{i // 3}" for i in range(60)])
    return generator.normal(size=(60, 20)).astype(np.float32), groups


def test_the_nearest_of_other_groups_are_those_of_a_plain_search(codes):
    z, groups = codes
    neighbors = nearest_neighbors(z, z, 4, groups, groups)
    for i in range(len(z)):
        distances = np.linalg.norm(z.astype(np.float64) - z[i], axis=1)
        distances[groups == groups[i]] = np.inf
        np.testing.assert_array_equal(neighbors.indices[i], np.argsort(distances)[:4])
        np.testing.assert_allclose(neighbors.distances[i], np.sort(distances)[:4], rtol=1e-12)


def test_distances_of_equal_codes_are_0_and_ties_are_in_the_pools_order():
    pool = 1e4 + np.zeros((5, 20))
    pool[4] += 1e-3
    neighbors = nearest_neighbors(pool[:1], pool, 4, ["a"], list("abcde"))
    assert neighbors.indices.tolist() == [[1, 2, 3, 4]]
    assert neighbors.distances[0, :3].tolist() == [0, 0, 0]


@pytest.mark.parametrize("k", [0, 3])
def test_too_many_neighbors_are_one_line(k):
    with pytest.raises(ConfigError, match=f"k: {k} is not from 1 to 2"):
        nearest_neighbors(np.eye(4), np.eye(4), k, list("aabc"), list("aabc"))


def test_groups_that_do_not_fit_are_refused(codes):
    z, groups = codes
    with pytest.raises(ConfigError, match="as many groups"):
        nearest_neighbors(z, z, 1, groups[:-1], groups)


def test_p_values_of_exchangeable_cases_are_uniform_and_of_reference_cases_each_once():
    generator = np.random.default_rng(0)
    reference, new = generator.normal(size=200), generator.normal(size=4000)
    p = p_values(new, reference, np.zeros(4000, bool))
    assert p.min() >= 1 / 201
    assert abs((p < 0.05).mean() - 0.05) < 0.03
    own = p_values(reference, reference, np.ones(200, bool))
    np.testing.assert_allclose(np.sort(own), np.arange(1, 201) / 200)


def test_a_score_above_all_has_the_lowest_p_and_nan_has_none():
    p = p_values([np.nan, 10.0, -10.0], [0.0, 1.0, 2.0], [False] * 3)
    np.testing.assert_array_equal(p, [np.nan, 0.25, 1.0])
    with pytest.raises(ConfigError, match="no reference case"):
        p_values([1.0], [], [False])
