"""Directions: how they are fitted, what they predict, how they move z_sem, and their files."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.special import logit
from scipy.stats import binomtest

from monai_diffae.errors import ConfigError
from monai_diffae.latents import Direction, LatentStatistics, fit_direction
from monai_diffae.latents.directions import label_change
from monai_diffae.latents.targets import read_line_target

MODEL = "a" * 64
TRUE_WEIGHT = np.array([0.6, 0, -0.8, 0, 0, 0])


@pytest.fixture(scope="module")
def z():
    return (np.random.default_rng(0).normal(size=(600, 6)) * [1, 5, 0.1, 2, 1, 1] + 3).astype(np.float32)


@pytest.fixture(scope="module")
def along(z):
    return LatentStatistics.of(z).normalise(z.astype(np.float64)) @ TRUE_WEIGHT


@pytest.fixture(scope="module")
def labels(along):
    """With the logit ``2 * along - 1``."""
    return (np.random.default_rng(1).random(600) < 1 / (1 + np.exp(1 - 2 * along))).astype(int)


@pytest.fixture(scope="module")
def binary(z, labels):
    return fit_direction(z, labels, target="ill", model=MODEL)


@pytest.fixture(scope="module")
def continuous(z, along):
    age = 50 + 8 * along + np.random.default_rng(2).normal(size=600)
    return fit_direction(z, age, target="age", model=MODEL)


def test_binary_direction_finds_the_line_of_the_classes(binary, labels, along):
    from sklearn.metrics import roc_auc_score

    assert (binary.kind, binary.classes, binary.num_cases, binary.num_omitted) == ("binary", ("0", "1"), 600, 0)
    assert np.linalg.norm(binary.weight) == pytest.approx(1)
    assert binary.weight @ TRUE_WEIGHT > 0.98
    assert binary.score == pytest.approx(roc_auc_score(labels, along), abs=0.02)
    # balanced weights move the plane to where both classes are as likely, had they been as frequent
    assert binary.slope == pytest.approx(2, rel=0.2)


def test_continuous_direction_finds_line_slope_and_mean(continuous, z):
    assert (continuous.kind, continuous.classes) == ("continuous", None)
    assert continuous.weight @ TRUE_WEIGHT > 0.999
    assert (continuous.slope, continuous.offset) == pytest.approx((8, 50), rel=0.02)
    assert continuous.score == pytest.approx(64 / 65, abs=0.005)
    assert continuous.distance(continuous.statistics.mean[None]) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("kind", ["binary", "continuous"])
def test_predictions_are_scikit_learns(kind, z, labels, along, request):
    from sklearn.linear_model import LogisticRegression, Ridge

    direction = request.getfixturevalue(kind)
    z_norm = direction.statistics.normalise(z.astype(np.float64))
    if kind == "continuous":
        age = 50 + 8 * along + np.random.default_rng(2).normal(size=600)
        expected = Ridge(direction.regularisation).fit(z_norm, age).predict(z_norm)
        np.testing.assert_allclose(direction.predict(z), expected, rtol=1e-6)
        return
    model = LogisticRegression(C=direction.regularisation, class_weight="balanced", max_iter=2000).fit(z_norm, labels)
    expected = model.decision_function(z_norm) / np.linalg.norm(model.coef_)
    np.testing.assert_allclose(direction.distance(z), expected, atol=3e-3)  # of two solvers
    expected = direction.slope * direction.distance(z) + direction.offset
    np.testing.assert_allclose(logit(direction.predict(z)), expected, atol=1e-6)


def test_noise_has_no_score_and_probabilities_of_a_half(z):
    generator = np.random.default_rng(4)
    coin = fit_direction(z, generator.integers(2, size=600), target="coin", model=MODEL)
    assert coin.low < 0.5 < coin.high < 0.6
    assert np.abs(coin.predict(z) - 0.5).max() < 0.2
    noise = fit_direction(z, generator.normal(size=600), target="noise", model=MODEL)
    assert noise.low < noise.high < 0.05
    assert coin.may_be_chance
    assert noise.may_be_chance


def test_cases_that_a_direction_was_fitted_to_are_recognised_up_to_rounding(binary, z):
    noise = 1 + 1e-6 * np.random.default_rng(0).normal(size=z.shape)
    assert binary.is_fitted_to(z * noise).all()
    assert not binary.is_fitted_to(np.random.default_rng(1).permuted(z, axis=0)).any()
    few = fit_direction(z, np.arange(600) % 2, target="t", model=MODEL, max_cases=20)
    assert few.is_fitted_to(z).sum() == 20


@pytest.mark.parametrize("kind", ["binary", "continuous"])
def test_strengths_are_standard_deviations_of_the_training_cases(kind, z, request):
    direction = request.getfixturevalue(kind)
    assert direction.std == pytest.approx(direction.distance(z).std(), rel=1e-6)
    for strength in (-3, 0.5, 2):
        for along in ("pattern", "weight"):
            gone = direction.distance(direction.move(z, strength, along)) - direction.distance(z)
            np.testing.assert_allclose(gone, strength * direction.std, atol=1e-4)


def test_moving_is_the_papers_arithmetic(binary, z):
    # Diff-AE: z_norm += amplitude * sqrt(D) * w / |w|
    amplitude = 0.3
    strength = amplitude * np.sqrt(6) / binary.std
    wide = z.astype(np.float64)
    expected = binary.statistics.denormalise(binary.statistics.normalise(wide) + amplitude * np.sqrt(6) * binary.weight)
    np.testing.assert_allclose(binary.move(wide, strength, along="weight"), expected, rtol=1e-9)


def test_the_pattern_is_how_cases_of_other_distances_differ_though_the_weight_is_not():
    # one cause moves two dimensions alike, the second also noise that the first is free of: a classifier takes the
    # difference of dimensions 1 and 2 to cancel the noise, along which no two cases ever differ alone
    generator = np.random.default_rng(0)
    cause, noise = generator.normal(size=(2, 4000))
    z = np.stack([cause + noise, noise, generator.normal(size=4000)], axis=1).astype(np.float32)
    direction = fit_direction(z, cause, target="cause", model=MODEL)
    z_norm = direction.statistics.normalise(z).astype(np.float64)
    slopes = np.polyfit(direction.distance(z), z_norm, 1)[0]
    np.testing.assert_allclose(direction.pattern, slopes, rtol=1e-4, atol=1e-6)
    assert direction.weight[1] < -0.3  # the classifier subtracts what is noise
    assert abs(direction.pattern[1]) < 0.05  # which cases of more cause do not have less of
    moved = direction.move(z, 1) - z
    np.testing.assert_allclose(moved.mean(axis=0)[:2], [cause.std(), 0], atol=0.05)


def test_strength_zero_changes_no_bit_and_what_does_not_fit_is_refused(binary, z):
    z = z.copy()
    z[0, 0] = -0.0
    moved = binary.move(z, 0)
    assert moved.dtype == z.dtype
    np.testing.assert_array_equal(moved.view(np.uint32), z.view(np.uint32))
    assert binary.move(z[3], 1).shape == (6,)
    for run, message in (
        (
            lambda: binary.check_fits("b" * 64, 6),
            "another model .aaaaaaaa with z_sem of 6 numbers; this one is bbbbbbbb",
        ),
        (lambda: binary.check_fits(MODEL, 8), "z_sem of 6 numbers; this one is aaaaaaaa with 8"),
        (lambda: binary.distance(z[:, :5]), "same model"),
        (lambda: binary.predict(np.full((1, 6), np.nan)), "not finite"),
    ):
        with pytest.raises(ConfigError, match=message):
            run()


@pytest.mark.parametrize("kind", ["binary", "continuous"])
def test_json_loses_nothing(kind, z, request):
    direction = request.getfixturevalue(kind)
    again = Direction.from_json(json.loads(json.dumps(direction.to_json(), allow_nan=False)))
    assert again.to_json() == direction.to_json()
    np.testing.assert_array_equal(again.predict(z), direction.predict(z))
    np.testing.assert_array_equal(again.move(z, 1.3), direction.move(z, 1.3))


def test_missing_labels_are_omitted_and_counted(z, labels):
    z, labels = z[:300], labels[:300]
    named = np.where(labels == 1, "ill", "well").astype(object)
    named[:50], named[50:70], named[70:75], named[75] = None, float("nan"), pd.NA, "  "
    direction = fit_direction(z, named, target="ill", model=MODEL, positive="ill")
    assert (direction.num_cases, direction.num_omitted, direction.classes) == (224, 76, ("well", "ill"))
    np.testing.assert_array_equal(direction.statistics.std, LatentStatistics.of(z).std)  # of all cases


def test_the_positive_class_turns_the_direction_and_may_be_one_of_several(z, labels, binary, along):
    down = fit_direction(z, labels, target="ill", model=MODEL, positive="0")
    assert down.classes == ("1", "0")
    np.testing.assert_allclose(down.weight, -binary.weight, atol=1e-3)
    grade = np.digitize(along, [-0.5, 0.5])
    direction = fit_direction(z[:400], grade[:400], target="grade", model=MODEL, positive=2)
    assert (direction.kind, direction.classes) == ("binary", ("not 2", "2"))
    assert direction.weight @ TRUE_WEIGHT > 0.98
    np.testing.assert_array_equal(direction.truth([0, 1.0, 2, "2"]), [0, 0, 1, 1])


def test_truth_of_labels(binary, continuous):
    np.testing.assert_array_equal(binary.truth([1, 0.0, "1", np.int64(0)]), [1, 0, 1, 0])
    np.testing.assert_array_equal(continuous.truth([40, 50.5]), [40, 50.5])
    with pytest.raises(ConfigError, match="neither '0' nor '1'"):
        binary.truth([0, 2])
    with pytest.raises(ConfigError, match="not numbers"):
        continuous.truth(["old"])


def test_few_labels_are_balanced_and_nested(z, labels):
    target = read_line_target(labels, "ill")
    small, large = target.balanced_choice(10, seed=1), target.balanced_choice(40, seed=1)
    assert (small.values.sum(), large.values.sum()) == (5, 20)
    assert set(small.rows) < set(large.rows)
    assert set(small.rows) != set(target.balanced_choice(10, seed=2).rows)
    np.testing.assert_array_equal(labels[small.rows], small.values)
    rare = read_line_target([1, 1, 1] + [0] * 30, "rare")
    assert rare.balanced_choice(12, seed=0).values.sum() == 3
    direction, again = (fit_direction(z, labels, target="ill", model=MODEL, max_cases=40, seed=3) for _ in range(2))
    assert direction.to_json() == again.to_json()
    assert (direction.num_cases, direction.num_omitted) == (40, 0)
    assert direction.weight @ TRUE_WEIGHT > 0.7
    np.testing.assert_array_equal(direction.statistics.std, LatentStatistics.of(z).std)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("version", 1, "version: input should be 2; fit the direction again"),
        ("pattern", [0.5] * 6, "weight: does not fit"),
        ("std", -1.0, "std: input should be greater than 0"),
        ("statistics", {"mean": [0.0] * 6, "std": [0.0] * 6}, "above 0"),
    ],
)
def test_content_that_is_no_direction_is_refused(key, value, message, binary):
    with pytest.raises(ConfigError, match=message):
        Direction.from_json({**binary.to_json(), key: value})


@pytest.mark.parametrize("num", [20, 13, 0])
def test_flips_are_counted_beyond_random_changes_with_an_exact_interval(num):
    z = np.random.default_rng(0).normal(size=(200, 3))
    sick = fit_direction(z, z[:, 0] > 0, target="sick", model=MODEL)
    few, towards = z[:20], -np.sign(z[:20, 0])
    after = few.copy()
    after[:num, 0] += 4 * towards[:num]
    codes = np.stack([few, after, few], axis=1)
    found = label_change(sick, codes, range(20), towards=towards)
    exact = binomtest(num, 20).proportion_ci(method="exact")
    assert (found.num_changed, found.num_cases, found.random_share) == (num, 20, 0.0)
    np.testing.assert_allclose([found.low, found.high], [exact.low, exact.high], atol=1e-9)
    assert (found.excess_low > 0) == (num > 0)
    two_each = np.repeat(codes, 2, axis=0)
    twice = label_change(sick, two_each, np.repeat(range(20), 2), towards=np.repeat(towards, 2))
    assert (twice.low, twice.high) == (found.low, found.high)
