"""Which cases to label next."""

import itertools

import numpy as np
import pytest

from monai_diffae.errors import ConfigError
from monai_diffae.latents import selection
from monai_diffae.latents.neighbors import nearest_distances
from monai_diffae.latents.statistics import LatentStatistics


def codes(seed, num=40, dims=3):
    return np.random.default_rng(seed).normal(size=(num, dims))


def select(strategy, z_sem, count, **options):
    return selection.Selection(z_sem, **options).select(strategy, count)


def radius(z, centres):
    return np.linalg.norm(z[:, None] - centres[None], axis=2).min(axis=1).max()


@pytest.mark.parametrize("seed", range(2))
def test_every_selection_is_the_farthest_from_all_before_it_and_the_radius_at_most_twice_the_best(seed):
    z, reference = codes(seed), codes(seed + 100, 4)
    rows = selection.farthest_first(z, reference, 10)
    assert len(set(rows.tolist())) == 10
    for i, row in enumerate(rows):
        covered = np.concatenate([reference, z[rows[:i]]])
        assert row == np.linalg.norm(z[:, None] - covered[None], axis=2).min(axis=1).argmax()
    assert selection.farthest_first(z, [], 1)[0] == np.linalg.norm(z - z.mean(axis=0), axis=1).argmin()
    z = codes(seed, 12, 2)
    best = min(radius(z, z[list(centres)]) for centres in itertools.combinations(range(12), 3))
    assert radius(z, z[selection.farthest_first(z, np.empty((0, 2)), 3)]) <= 2 * best


def test_of_equals_the_first_row_is_selected_duplicates_come_last_and_weights_multiply_the_distances():
    z = np.array([[1.0], [-1.0], [1.0], [0.0], [0.0]])
    assert selection.farthest_first(z, [[0.0]], 5).tolist() == [0, 1, 2, 3, 4]
    z = np.array([[1.0], [2.0], [-4.0]])
    assert selection.farthest_first(z, [[0.0]], 1, weights=[9.0, 1.0, 1.0]).tolist() == [0]
    z = codes(0) + 1e6
    np.testing.assert_array_equal(nearest_distances(z, z[::-1]), 0)
    with pytest.raises(ConfigError, match="not finite"):
        selection.farthest_first([[np.nan]], [[0.0]], 1)


def test_typical_cases_are_those_of_regions_not_yet_covered():
    generator = np.random.default_rng(0)
    centres = np.array([[0.0, 0], [20, 0], [0, 20], [20, 20]])
    sizes = [40, 30, 20, 10]
    z = np.concatenate([c + generator.normal(size=(n, 2)) for c, n in zip(centres, sizes, strict=True)])
    blob = np.repeat(range(4), sizes)
    rows = selection.typical_first(z, [], 4)
    assert blob[rows].tolist() == [0, 1, 2, 3]  # the largest first
    for row in rows:
        own = z[blob == blob[row]]
        far = np.linalg.norm(own - own.mean(axis=0), axis=1)
        assert np.linalg.norm(z[row] - own.mean(axis=0)) < np.median(far)
    covered = np.flatnonzero(np.isin(blob, [0, 2]))[[0, -1]]
    assert blob[selection.typical_first(z, covered, 2)].tolist() == [1, 3]


@pytest.fixture
def z_sem():
    return np.random.default_rng(0).normal(size=(50, 4)) * [1, 10, 0.1, 1] + 3


LABELLED = [4, 8, 15, 16, 23, 42]
KINDS = {"classes": ["a", "b", "a", "a", "b", "b"], "numbers": [1.5, 2.5, 3.25, 1.0, 7.5, 2.0]}


@pytest.mark.parametrize("strategy", selection.STRATEGIES)
def test_any_number_of_labels_gives_new_cases_the_same_each_time(strategy, z_sem):
    for num_labels, kind in ((0, "classes"), (1, "numbers"), (6, "classes"), (6, "numbers")):
        labelled, labels, proposed = LABELLED[:num_labels], KINDS[kind][:num_labels], [0, 1]
        options = {"labelled": labelled, "labels": labels, "proposed": proposed, "seed": 3}
        rows = select(strategy, z_sem, 5, **options)
        assert len(set(rows.tolist())) == 5
        assert not np.isin(rows, [*labelled, *proposed]).any()
        np.testing.assert_array_equal(rows, select(strategy, z_sem, 5, **options))
        assert sorted(select(strategy, z_sem, 99, **options)) == sorted(set(range(50)) - {*labelled, *proposed})
    for num in (0, 1, 3):  # few cases, and equal ones
        for codes in (np.ones((num, 2)), np.arange(2.0 * num).reshape(num, 2)):
            assert sorted(select(strategy, codes, 5)) == list(range(num))
        assert select(strategy, np.ones((num, 2)), 5, labelled=range(num), labels=["a"] * num).tolist() == []


def test_diversity_does_not_depend_on_the_units_of_the_dimensions(z_sem):
    rows = select("diversity", z_sem, 8, labelled=[0])
    z = LatentStatistics.of(z_sem).normalise(z_sem)
    np.testing.assert_array_equal(np.arange(1, 50)[selection.farthest_first(z[1:], z[:1], 8)], rows)
    np.testing.assert_array_equal(select("diversity", z_sem * [1, 100, 3, 7], 8, labelled=[0]), rows)


def test_mixed_takes_one_of_two_equal_uncertain_cases():
    """Two twins are the most uncertain: uncertain takes both, mixed the first and then another."""
    known = np.concatenate([np.linspace(-2.1, -1.9, 5), np.linspace(1.9, 2.1, 5)])
    z = np.concatenate([np.stack([known, np.zeros(10)], axis=1), [[0.01, 5], [0.01, 5], [0.3, -4]]])
    arguments = {"labelled": range(10), "labels": list("aaaaabbbbb")}
    assert select("uncertain", z, 2, **arguments).tolist() == [10, 11]
    assert select("mixed", z, 2, **arguments).tolist() == [10, 12]


def test_a_planted_outlier_comes_first_and_the_scans_of_one_patient_do_not_hide_each_other(z_sem):
    planted = z_sem.copy()
    planted[31] += [0, 0, 2, 0]
    order = selection.outlier_order(planted)
    assert order[0] == 31
    assert sorted(order) == list(range(50))
    assert select("outlier", planted, 3, proposed=[31]).tolist() == order[1:4].tolist()
    z = np.concatenate([z_sem, np.full((6, 4), 3.0) + [9, 0, 0, 9] + 0.001 * z_sem[:6]])
    groups = [*range(50), *[50] * 6]
    assert set(selection.outlier_order(z, groups)[:6]) == set(range(50, 56))
    assert not set(selection.outlier_order(z)[:6]) & set(range(50, 56))
    assert set(select("outlier", z, 6, groups=groups)) == set(range(50, 56))


@pytest.fixture
def line():
    return np.linspace(-2, 2, 81)[:, None]


def test_the_entropy_is_largest_between_the_classes_and_at_most_1(line):
    entropy = selection.uncertainty(line, [0, 20, 60, 80], ["a", "a", "b", "b"])
    assert abs(entropy.argmax() - 40) <= 1
    assert 0.99 < entropy.max() <= 1
    assert entropy.min() >= 0
    assert entropy[0] < entropy[20] < entropy[40]
    three = selection.uncertainty(line, [0, 1, 39, 41, 79, 80], [0, 0, 1, 1, 2, 2])  # whole numbers are classes
    assert 0 <= three.min() < three.max() <= 1
    with pytest.raises(ConfigError, match="^labels: 2 labelled cases need 2 labels, none of them missing"):
        selection.uncertainty(line, [0, 1], [0.5, np.nan])


def test_the_standard_deviation_grows_away_from_the_labels_and_has_their_unit(line):
    rows = np.arange(30, 51)
    values = 100 + 9.5 * line[rows, 0] + np.random.default_rng(0).normal(size=21)
    std = selection.uncertainty(line, rows, values)
    assert std[0] > std[20] > std[40]
    assert 0.3 < std[40] < 3
    np.testing.assert_allclose(selection.uncertainty(line, rows, values * 1000), std * 1000, rtol=1e-6)
