import numpy as np
import pytest

from monai_diffae.errors import ConfigError
from monai_diffae.latents.selection.uncertainty import uncertainty


@pytest.fixture
def line():
    return np.linspace(-2, 2, 81)[:, None]


def test_the_entropy_is_largest_between_the_classes_and_at_most_1(line):
    entropy = uncertainty(line, [0, 20, 60, 80], ["a", "a", "b", "b"])
    assert abs(entropy.argmax() - 40) <= 1
    assert 0.99 < entropy.max() <= 1
    assert entropy.min() >= 0
    assert entropy[0] < entropy[20] < entropy[40]


def test_three_classes(line):
    entropy = uncertainty(line, [0, 1, 39, 41, 79, 80], [0, 0, 1, 1, 2, 2])
    assert entropy.shape == (81,)
    assert 0 <= entropy.min() < entropy.max() <= 1


def test_the_standard_deviation_grows_away_from_the_labels_and_has_their_unit(line):
    rows = np.arange(30, 51)
    values = 100 + 9.5 * line[rows, 0] + np.random.default_rng(0).normal(size=21)
    std = uncertainty(line, rows, values)
    assert std[0] > std[20] > std[40]
    assert 0.3 < std[40] < 3
    np.testing.assert_allclose(uncertainty(line, rows, values * 1000), std * 1000, rtol=1e-6)


@pytest.mark.parametrize(
    ("labelled", "labels"), [([], []), ([3], ["a"]), ([3], [1.5]), ([3, 4], ["a", "a"]), ([3, 4, 5], [2.5, 2.5, 2.5])]
)
def test_without_two_labels_that_differ_all_are_equally_uncertain(line, labelled, labels):
    assert uncertainty(line, labelled, labels).tolist() == [1.0] * 81


def test_whole_numbers_from_0_to_20_are_classes_unless_the_caller_says_so(line):
    rows, labels = [0, 20, 60, 80], [0, 1, 2, 3]
    classes, numbers = (uncertainty(line, rows, labels, kind=kind) for kind in ("classes", "numbers"))
    np.testing.assert_array_equal(uncertainty(line, rows, labels), classes)
    assert not np.allclose(classes, numbers)
    volumes = [2948, 3353, 3698, 4263]
    np.testing.assert_array_equal(uncertainty(line, rows, volumes), uncertainty(line, rows, volumes, kind="numbers"))
    as_text = uncertainty(line, rows, list("aabb"))
    np.testing.assert_allclose(uncertainty(line, rows, [True, True, False, False]), as_text, rtol=1e-6)


@pytest.mark.parametrize(
    ("labelled", "labels", "kind", "message"),
    [
        ([0, 1], ["a"], "auto", "^labels: 1 labels for 2 labelled cases; give one for each"),
        ([0, 1], ["a", "b"], "numbers", "^labels: are not all numbers; give numbers, or classes"),
        ([0, 1], [0.5, np.nan], "auto", "^labels: some are missing or infinite; give only cases with a label"),
    ],
)
def test_labels_that_cannot_be_used_are_named(line, labelled, labels, kind, message):
    with pytest.raises(ConfigError, match=message):
        uncertainty(line, labelled, labels, kind=kind)
