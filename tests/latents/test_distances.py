"""Distances between cases and between samples: neighbors, outliers, twins, stability."""

from dataclasses import astuple

import numpy as np
import pytest
from scipy.spatial.distance import cdist, pdist

from monai_diffae.errors import ConfigError
from monai_diffae.latents import LatentStatistics, neighbors, representation


def test_distances_of_equal_codes_are_0_and_ties_are_in_the_pools_order():
    pool = 1e4 + np.zeros((5, 20))
    pool[4] += 1e-3
    found = neighbors.nearest_neighbors(pool[:1], pool, 4, ["a"], list("abcde"))
    assert found.indices.tolist() == [[1, 2, 3, 4]]
    assert found.distances[0, :3].tolist() == [0, 0, 0]
    for groups, pool_groups in ((["a"], list("abcdef")), (["a"] * 2, list("abcde"))):
        with pytest.raises(ConfigError, match="^neighbors: give as many groups as cases"):
            neighbors.nearest_neighbors(pool[:1], pool, 3, groups, pool_groups)


def test_p_values_of_exchangeable_cases_are_uniform_and_of_reference_cases_each_once():
    generator = np.random.default_rng(0)
    reference, new = generator.normal(size=200), generator.normal(size=4000)
    p = neighbors.p_values(new, reference, np.zeros(4000, bool))
    assert p.min() >= 1 / 201
    assert abs((p < 0.05).mean() - 0.05) < 0.03
    own = neighbors.p_values(reference, reference, np.ones(200, bool))
    np.testing.assert_allclose(np.sort(own), np.arange(1, 201) / 200)


@pytest.fixture
def reference():
    return np.random.default_rng(0).normal(size=(120, 6)) * [1, 5, 0.1, 1, 1, 1]


def test_outlier_scores_are_distances_to_the_nearest_reference_cases(reference):
    """Those of nine of ten folds, never the case's own, in the units of these."""
    new, folds = np.random.default_rng(1).normal(size=(9, 6)), np.argsort(np.argsort(np.arange(120).astype(str))) % 10
    expected = np.empty((10, 129))
    for i in range(10):
        units = LatentStatistics.of(reference[folds != i]).normalise
        nearest = neighbors.nearest_neighbors(units(np.r_[new, reference]), units(reference[folds != i]), 3)
        expected[i] = nearest.distances.mean(axis=1)
    scores = neighbors.outlier_scores(new, reference, k=3, whitened=False)
    assert np.isclose(scores.distances, expected[:, :9], rtol=1e-5).any(axis=0).all()
    own = neighbors.ReferenceCases.of(reference).own_distances(3, False)
    np.testing.assert_allclose(own, expected[folds, 9 + np.arange(120)], rtol=1e-5)
    np.testing.assert_array_equal(scores.p_values, neighbors.p_values(scores.distances, own, np.zeros(9, bool)))


def test_copies_of_other_patients_are_twins_whatever_the_scale_of_a_dimension():
    z = np.random.default_rng(0).normal(size=(300, 32)) @ np.diag(np.linspace(0.1, 3, 32))
    copies = z[:100] + 0.01 * z.std(axis=0) * np.random.default_rng(1).normal(size=(100, 32))
    expected = [[i, 300 + i] for i in range(100)]
    for scale in (1.0, np.logspace(-3, 3, 32)):
        assert neighbors.near_pairs(np.concatenate([z, copies]) * scale, np.arange(400)).tolist() == expected
    assert len(neighbors.near_pairs(np.concatenate([z, z]), np.arange(600))) == 300
    # none: different patients, the same patient, a few patients, a constant encoder
    assert len(neighbors.near_pairs(z, np.arange(300))) == 0
    assert len(neighbors.near_pairs([*z, z[5]], np.r_[:300, 5])) == 0
    assert [len(neighbors.near_pairs(z[:count], np.arange(count))) for count in (1, 2, 3)] == [0, 0, 0]
    assert len(neighbors.near_pairs(np.ones((20, 4)), np.arange(20))) == 0


def stability_over_all_pairs(x, again, own, others):
    """Ratios and rank-1 by their definition, with masks (N, N) of what counts."""
    compared = [i for i in range(len(x)) if own[i].any() and others[i].any()]
    to_all = {i: np.linalg.norm(x - again[i], axis=1) for i in compared}
    moved, to_other = (np.array([to_all[i][mask[i]].min() for i in compared]) for mask in (own, others))
    usual = np.median(np.concatenate([np.linalg.norm(x[others[i]] - x[i], axis=1) for i in compared]))
    return (*(np.percentile(moved, [50, 90]) / usual), (moved < to_other).mean(), len(compared))


@pytest.fixture
def z():
    return np.random.default_rng(0).normal(size=(60, 16))


@pytest.mark.parametrize("num", [60, 120])
def test_figures_are_those_of_all_pairs_to_the_bit(num):
    rng = np.random.default_rng(2)
    z, patients = rng.normal(size=(num, 16)), rng.integers(20, size=num)
    scans, slices = (rng.integers(most, size=num) for most in (3, 2))
    z[7] = z[5] = z[3]  # of ties, rounding must not decide
    same = patients[:, None] == patients
    for step in (0, 0.01, 1, 5):
        again = z + step * rng.normal(size=z.shape)
        measured = representation.stability(z, again, patients)
        assert astuple(measured) == stability_over_all_pairs(z, again, np.eye(num, dtype=bool), ~same)
        own = same & (scans[:, None] != scans) & (slices[:, None] == slices)
        assert astuple(representation.stability(z, again, patients, scans, slices)) == stability_over_all_pairs(
            z, again, own, ~same
        )
    assert 0 < measured.rank_1 < 1


def test_of_many_pairs_a_sample_is_enough():
    z, again = normal(0, 800, 4), normal(1, 800, 4)
    own = np.eye(800, dtype=bool)
    some, expected = representation.stability(z, again, np.arange(800)), stability_over_all_pairs(z, again, own, ~own)
    assert some.ratio != expected[0]
    np.testing.assert_allclose(astuple(some), expected, rtol=0.01)
    assert some == representation.stability(z, again, np.arange(800))


def normal(seed, *shape, shift=0.0):
    return np.random.default_rng(seed).normal(size=shape) + shift


def test_nearest_distances_are_those_of_scipy():
    a, b = normal(0, 40, 20, shift=1000), normal(1, 60, 20, shift=1000)
    np.testing.assert_allclose(neighbors.nearest_distances(a, b), cdist(a, b).min(axis=1), rtol=1e-9)
    np.testing.assert_array_equal(neighbors.nearest_distances(b[:5], b), 0)


@pytest.mark.parametrize("num", [70, 2900])
def test_mmd_is_that_of_scikit_learns_kernel_whatever_the_blocks(num):
    from sklearn.metrics.pairwise import rbf_kernel

    a, b, bandwidth = normal(0, num, 6), normal(1, 50, 6, shift=0.4), 1.7
    gamma = 1 / (2 * bandwidth**2)
    off_diagonal = [(k.sum() - len(k)) / (len(k) * (len(k) - 1)) for k in (rbf_kernel(z, gamma=gamma) for z in (a, b))]
    expected = sum(off_diagonal) - 2 * rbf_kernel(a, b, gamma=gamma).mean()
    assert neighbors.mmd(a, b, bandwidth) == pytest.approx(expected, rel=1e-9)


def test_mmd_has_no_bias():
    a, b = normal(0, 70, 6), normal(1, 50, 6, shift=0.4)
    assert neighbors.mmd(a, b) == pytest.approx(neighbors.mmd(a, b, np.median(pdist(np.concatenate([a, b])))))
    values = [neighbors.mmd(normal(2 * i, 12, 3), normal(2 * i + 1, 30, 3)) for i in range(300)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values))
    assert min(values) < 0 < neighbors.mmd(normal(0, 12, 3), normal(1, 30, 3, shift=2))


def test_copies_are_told_from_new_samples():
    train, held_out, new = normal(0, 300, 8), normal(1, 200, 8), normal(2, 200, 8)
    assert neighbors.copying_ratio(new, train, held_out) == pytest.approx(1, abs=0.15)
    assert neighbors.copying_ratio(train[:100] + 0.01 * normal(3, 100, 8), train, held_out) < 0.05
    with pytest.raises(ConfigError, match="in the training set"):
        neighbors.copying_ratio(new, train, train[:50])
