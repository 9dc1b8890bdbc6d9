import numpy as np
import pytest

from monai_diffae.errors import ConfigError
from monai_diffae.latents.selection import STRATEGIES, farthest_first, outlier_order, select, uncertainty
from monai_diffae.latents.statistics import LatentStatistics


@pytest.fixture
def z_sem():
    return np.random.default_rng(0).normal(size=(50, 4)) * [1, 10, 0.1, 1] + 3


LABELLED = [4, 8, 15, 16, 23, 42]
KINDS = {"classes": ["a", "b", "a", "a", "b", "b"], "numbers": [1.5, 2.5, 3.25, 1.0, 7.5, 2.0]}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("num_labels", [0, 1, 2, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_labels_gives_new_cases_the_same_each_time(strategy, num_labels, kind, z_sem):
    labelled, labels, proposed = LABELLED[:num_labels], KINDS[kind][:num_labels], [0, 1]

    def rows(count):
        return select(strategy, z_sem, count, labelled=labelled, labels=labels, proposed=proposed, seed=3)

    assert len(set(rows(5).tolist())) == 5
    assert not np.isin(rows(5), [*labelled, *proposed]).any()
    np.testing.assert_array_equal(rows(5), rows(5))
    assert sorted(rows(99)) == sorted(set(range(50)) - {*labelled, *proposed})


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("num", [0, 1, 2, 3])
def test_few_and_equal_cases(strategy, num):
    assert sorted(select(strategy, np.ones((num, 2)), 5)) == list(range(num))
    assert sorted(select(strategy, np.arange(2.0 * num).reshape(num, 2), 5)) == list(range(num))
    assert select(strategy, np.ones((num, 2)), 5, labelled=range(num), labels=["a"] * num).tolist() == []


def test_proposals_one_by_one_are_those_of_a_batch(z_sem):
    proposed = []
    for _ in range(6):
        proposed += select("diversity", z_sem, proposed=proposed).tolist()
    assert proposed == select("diversity", z_sem, 6).tolist()


def test_diversity_does_not_depend_on_the_units_of_the_dimensions(z_sem):
    rows = select("diversity", z_sem, 8, labelled=[0])
    z = LatentStatistics.of(z_sem).normalise(z_sem)
    np.testing.assert_array_equal(np.arange(1, 50)[farthest_first(z[1:], z[:1], 8)], rows)
    np.testing.assert_array_equal(select("diversity", z_sem * [1, 100, 3, 7], 8, labelled=[0]), rows)


def test_uncertain_cases_are_the_most_uncertain_of_those_left(z_sem):
    labels = KINDS["classes"]
    scores = uncertainty(LatentStatistics.of(z_sem).normalise(z_sem), LABELLED, labels)
    rows = select("uncertain", z_sem, 4, labelled=LABELLED, labels=labels)
    scores[LABELLED] = -1
    np.testing.assert_array_equal(rows, np.argsort(-scores, kind="stable")[:4])


def test_mixed_takes_one_of_two_equal_uncertain_cases():
    """Two twins are the most uncertain: uncertain takes both, mixed the first and then another."""
    known = np.concatenate([np.linspace(-2.1, -1.9, 5), np.linspace(1.9, 2.1, 5)])
    z = np.concatenate([np.stack([known, np.zeros(10)], axis=1), [[0.01, 5], [0.01, 5], [0.3, -4]]])
    arguments = {"labelled": range(10), "labels": list("aaaaabbbbb")}
    assert select("uncertain", z, 2, **arguments).tolist() == [10, 11]
    assert select("mixed", z, 2, **arguments).tolist() == [10, 12]


@pytest.mark.parametrize("strategy", ["uncertain", "mixed"])
def test_without_labels_that_differ_a_probe_strategy_is_typical(strategy, z_sem):
    labelled, labels = range(12), ["a"] * 12
    expected = select("typical", z_sem, 5, labelled=labelled)
    np.testing.assert_array_equal(select(strategy, z_sem, 5, labelled=labelled, labels=labels), expected)


def test_mixed_is_typical_for_numbers(z_sem):
    labels = np.linspace(0.5, 9.5, 20)
    expected = select("typical", z_sem, 5, labelled=range(20))
    np.testing.assert_array_equal(select("mixed", z_sem, 5, labelled=range(20), labels=labels), expected)
    classes = select("mixed", z_sem, 5, labelled=range(20), labels=["a", "b"] * 10)
    assert set(classes) != set(expected)


def test_with_few_labels_mixed_is_typical_and_uncertain_is_not(z_sem):
    arguments = {"labelled": LABELLED, "labels": KINDS["classes"]}
    typical, uncertain, mixed = (select(name, z_sem, 5, **arguments) for name in ("typical", "uncertain", "mixed"))
    np.testing.assert_array_equal(mixed, typical)
    assert set(mixed) != set(uncertain)


def test_a_planted_outlier_comes_first_and_the_rest_follow(z_sem):
    z_sem[31] += [0, 0, 2, 0]
    order = outlier_order(z_sem)
    assert order[0] == 31
    assert sorted(order) == list(range(50))
    assert select("outlier", z_sem, 3, proposed=[31]).tolist() == order[1:4].tolist()


def test_the_scans_of_one_patient_do_not_hide_each_other(z_sem):
    z = np.concatenate([z_sem, np.full((6, 4), 3.0) + [9, 0, 0, 9] + 0.001 * z_sem[:6]])
    groups = [*range(50), *[50] * 6]
    assert set(outlier_order(z, groups)[:6]) == set(range(50, 56))
    assert not set(outlier_order(z)[:6]) & set(range(50, 56))


@pytest.mark.parametrize("seed", range(3))
def test_random_depends_on_the_seed_alone(seed, z_sem):
    rows = select("random", z_sem, 10, seed=seed)
    np.testing.assert_array_equal(select("random", z_sem * 2, 10, seed=seed), rows)
    assert rows.tolist() != select("random", z_sem, 10, seed=seed + 1).tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strategy": "best"}, "^strategy: 'best' is not one of random, "),
        ({"labelled": [50]}, "^labelled: a row is outside 0 to 49; give row numbers"),
        ({"proposed": [-1]}, "^proposed: a row is outside"),
        ({"strategy": "uncertain", "labelled": [1, 2]}, "^labels: 0 labels for 2 labelled cases"),
    ],
)
def test_arguments_that_cannot_be_used_are_named(arguments, message, z_sem):
    with pytest.raises(ConfigError, match=message):
        select(**{"strategy": "diversity", "z_sem": z_sem, **arguments})


def test_many_cases_are_compared_with_a_sample():
    z_sem = np.random.default_rng(0).normal(size=(6000, 2))
    z_sem[17] += 20
    order = outlier_order(z_sem)
    assert order[0] == 17
    assert len(set(order.tolist())) == 6000
    np.testing.assert_array_equal(outlier_order(z_sem), order)
