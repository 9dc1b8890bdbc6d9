import numpy as np
import pytest

from monai_diffae.errors import ConfigError
from monai_diffae.latents.probing.targets import copies_of, far_off, read_probe_target


def test_numbers_of_few_values_are_classes_in_their_order_and_the_same_as_with_gaps():
    whole = read_probe_target([10, 2, 2, 10], "grade")
    assert whole.classes == read_probe_target([10.0, 2.0, None, 10.0], "grade").classes == ("2", "10")
    assert whole.values.tolist() == [1, 0, 0, 1]
    assert read_probe_target([True, False], "is_ill").classes == ("False", "True")
    assert read_probe_target(range(11), "age").classes is None
    assert read_probe_target(range(10), "age").classes is not None
    assert read_probe_target(range(11), "age", np.arange(3)).classes is None  # a few cases of a continuous label


def test_missing_labels_are_omitted_and_cases_keep_the_requested_order():
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
        ([*range(20), float("inf")], "infinite"),
        ([f"word {i}" for i in range(21)], "text with 21 different values"),
    ],
)
def test_labels_that_cannot_be_probed_are_refused(labels, message):
    with pytest.raises(ConfigError, match=f"^target 'label': .*{message}"):
        read_probe_target(labels, "label")


@pytest.mark.parametrize("largest", [np.inf, 1e300, -1e31])
def test_numbers_that_are_too_large_are_refused(largest):
    with pytest.raises(
        ConfigError, match="^target 'age': contains values that are infinite or too large; correct them"
    ):
        read_probe_target([*range(20), largest], "age")


@pytest.mark.parametrize("code", [99999, 999, -999, 1e30])
@pytest.mark.parametrize("spread", [3.0, 15.0])
def test_typing_errors_and_codes_are_far_off(code, spread):
    ages = np.random.default_rng(0).normal(50, spread, 200)
    assert far_off(np.r_[ages, code]).nonzero()[0].tolist() == [200]


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: rng.normal(size=2000),
        lambda rng: rng.lognormal(0, 1, 2000),
        lambda rng: rng.lognormal(0, 2.5, 2000),
        lambda rng: rng.lognormal(0, 1.5, 2000) * (rng.random(2000) < 0.2),  # mostly none
        lambda rng: rng.negative_binomial(0.3, 0.02, 2000).astype(float),
        lambda rng: rng.exponential(size=2000),
        lambda rng: np.round(rng.normal(0, 0.5, 2000)),  # mostly no change
        lambda rng: np.ones(20),
        lambda rng: np.r_[np.zeros(50), np.ones(50), -100.0],
    ],
)
def test_skewed_and_sparse_amounts_are_not_far_off(draw):
    assert not far_off(draw(np.random.default_rng(0)))[:-1].any()


def test_a_code_among_skewed_amounts_is_far_off():
    amounts = np.random.default_rng(0).lognormal(0, 1, 500)
    assert far_off(np.r_[amounts, 99999.0, -999.0]).nonzero()[0].tolist() == [500, 501]


def test_copies_of_numbers_are_monotonic_in_them():
    rng = np.random.default_rng(0)
    age = rng.normal(50, 10, 300)
    target = read_probe_target(age, "age")
    features = {
        "same": age, "days": 365.25 * age + 3, "single": age.astype(np.float32), "logarithm": -np.log(age.clip(1)),
        "noisy": age + rng.normal(0, 0.01, 300), "old": age > 50, "constant": np.ones(300),
    }  # fmt: skip
    assert copies_of(target, np.stack(list(features.values()), axis=1)).tolist() == [0, 1, 2, 3]
    assert not len(copies_of(target.only(np.arange(300) < 8), age[:8, None]))


def test_copies_of_classes_have_a_value_for_each():
    names = np.array(["a", "b", "c"])[np.arange(60) % 3]
    target = read_probe_target(names, "site")
    code = {"own": [2.0, 7.0, -1.0], "two_alike": [1.0, 0.0, 1.0], "neighbors_alike": [1.0, 1.0, 0.0]}
    features = np.stack([np.array(values)[np.arange(60) % 3] for values in code.values()], axis=1)
    typing_error = features[:, :1].copy()
    typing_error[5] = 99
    other = np.random.default_rng(0).random((60, 1))
    assert copies_of(target, np.concatenate([features, typing_error, other], axis=1)).tolist() == [0]
