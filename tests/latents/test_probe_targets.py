import numpy as np
import pytest

from monai_diffae.errors import ConfigError
from monai_diffae.latents.probe_targets import read_probe_target


def test_numbers_of_few_values_are_classes_in_their_order_and_the_same_as_with_gaps():
    whole = read_probe_target([10, 2, 2, 10], "grade")
    assert whole.classes == read_probe_target([10.0, 2.0, None, 10.0], "grade").classes == ("2", "10")
    assert whole.values.tolist() == [1, 0, 0, 1]
    assert read_probe_target([True, False], "is_ill").classes == ("False", "True")
    assert read_probe_target(range(11), "age").classes is None
    assert read_probe_target(range(10), "age").classes is not None
    assert read_probe_target(range(11), "age", np.arange(3)).classes is None  # a few cases of a continuous label


def test_missing_labels_are_left_out_and_cases_keep_the_order_asked_for():
    target = read_probe_target(["b", None, " ", "a", np.nan, "b"], "kind", np.array([5, 4, 3, 2, 1, 0]))
    assert target.rows.tolist() == [5, 3, 0]
    assert target.values.tolist() == [1, 0, 1]


def test_fewer_cases_and_patients_of_classes():
    target = read_probe_target(["a", "b", "b", "c", "c", "c"], "kind")
    patients = np.array([1, 1, 2, 3, 3, 4])
    assert target.patients_of_classes(patients) == {"a": 1, "b": 2, "c": 2}
    fewer = target.only(np.array([True, False, False, True, True, True]))
    assert (fewer.classes, fewer.values.tolist(), fewer.rows.tolist()) == (("a", "c"), [0, 1, 1, 1], [0, 3, 4, 5])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([3, 3, None], "2 of 3 cases have it, and it is the same for all"),
        ([None, ""], "0 of 2 cases have it"),
        ([*range(20), float("inf")], "not finite"),
        ([f"word {i}" for i in range(21)], "text of 21 different values"),
    ],
)
def test_labels_that_cannot_be_probed_are_refused(labels, message):
    with pytest.raises(ConfigError, match=f"^target 'label': .*{message}"):
        read_probe_target(labels, "label")
