import itertools
import time

import numpy as np
import pytest

from monai_diffae.errors import ConfigError
from monai_diffae.latents.selection.coverage import farthest_first, nearest_distances, typical_first


def codes(seed, num=40, dims=3):
    return np.random.default_rng(seed).normal(size=(num, dims))


def radius(z, centres):
    return np.linalg.norm(z[:, None] - centres[None], axis=2).min(axis=1).max()


@pytest.mark.parametrize("seed", range(5))
def test_every_selection_is_the_farthest_from_all_before_it(seed):
    z, reference = codes(seed), codes(seed + 100, 4)
    rows = farthest_first(z, reference, 10)
    assert len(set(rows.tolist())) == 10
    for i, row in enumerate(rows):
        covered = np.concatenate([reference, z[rows[:i]]])
        distances = np.linalg.norm(z[:, None] - covered[None], axis=2).min(axis=1)
        assert row == distances.argmax()


@pytest.mark.parametrize("seed", range(5))
def test_the_greedy_radius_is_at_most_twice_the_best(seed):
    z = codes(seed, 12, 2)
    best = min(radius(z, z[list(centres)]) for centres in itertools.combinations(range(12), 3))
    assert radius(z, z[farthest_first(z, np.empty((0, 2)), 3)]) <= 2 * best


def test_without_reference_the_first_is_next_to_the_mean():
    z = codes(0)
    assert farthest_first(z, [], 1)[0] == np.linalg.norm(z - z.mean(axis=0), axis=1).argmin()


def test_a_longer_selection_begins_with_the_shorter_and_ends_with_the_cases():
    z = codes(0)
    rows = farthest_first(z, z[:0], 99)
    assert sorted(rows) == list(range(40))
    np.testing.assert_array_equal(farthest_first(z, z[:0], 7), rows[:7])
    np.testing.assert_array_equal(farthest_first(z, z[rows[:3]], 8)[:4], rows[3:7])


def test_of_equals_the_first_row_is_selected_and_duplicates_come_last():
    z = np.array([[1.0], [-1.0], [1.0], [0.0], [0.0]])
    assert farthest_first(z, [[0.0]], 5).tolist() == [0, 1, 2, 3, 4]


def test_weights_multiply_the_distances():
    z = np.array([[1.0], [2.0], [-4.0]])
    assert farthest_first(z, [[0.0]], 1, weights=[9.0, 1.0, 1.0]).tolist() == [0]


def test_the_fast_search_finds_distances_of_duplicates_exactly():
    z = codes(0) + 1e6
    np.testing.assert_array_equal(nearest_distances(z, z[::-1]), 0)


def test_typical_cases_are_those_of_regions_not_yet_covered():
    generator = np.random.default_rng(0)
    centres = np.array([[0.0, 0], [20, 0], [0, 20], [20, 20]])
    sizes = [40, 30, 20, 10]
    z = np.concatenate([c + generator.normal(size=(n, 2)) for c, n in zip(centres, sizes, strict=True)])
    blob = np.repeat(range(4), sizes)
    rows = typical_first(z, [], 4)
    assert blob[rows].tolist() == [0, 1, 2, 3]  # the largest first
    for row in rows:
        own = z[blob == blob[row]]
        far = np.linalg.norm(own - own.mean(axis=0), axis=1)
        assert np.linalg.norm(z[row] - own.mean(axis=0)) < np.median(far)
    covered = np.flatnonzero(np.isin(blob, [0, 2]))[[0, -1]]
    assert blob[typical_first(z, covered, 2)].tolist() == [1, 3]


def test_typical_cases_are_new_and_as_many_as_there_are():
    z = codes(0)
    covered = [0, 5, 39]
    rows = typical_first(z, covered, 99, seed=1)
    assert sorted([*rows, *covered]) == list(range(40))
    np.testing.assert_array_equal(typical_first(z, covered, 99, seed=1), rows)
    assert typical_first(np.ones((3, 2)), [0], 5).tolist() == [1, 2]
    assert typical_first(z, range(40), 3).tolist() == []


def test_many_cases_are_divided_into_clusters_of_about_a_thousand_that_are_searched_quickly():
    z = codes(0, 12_000, 4)
    start = time.process_time()
    (row,) = typical_first(z, [], 1)
    assert time.process_time() - start < 20
    assert np.linalg.norm(z[row]) < np.median(np.linalg.norm(z, axis=1))


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ConfigError, match="not finite"):
        farthest_first([[np.nan]], [[0.0]], 1)
    with pytest.raises(ConfigError, match="not finite"):
        typical_first([[np.nan]], [], 1)
