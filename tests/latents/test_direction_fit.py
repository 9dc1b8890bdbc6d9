import json

import numpy as np
import pandas as pd
import pytest
from scipy.special import logit

from monai_diffae.errors import ConfigError
from monai_diffae.latents import Direction, LatentStatistics, fit_direction
from monai_diffae.latents.targets import balanced_choice, read_target

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
    np.testing.assert_allclose(direction.distance(z), expected, atol=1e-6)
    np.testing.assert_allclose(logit(direction.predict(z)), direction.slope * expected, atol=1e-6)


def test_probabilities_hold_for_classes_as_frequent(binary):
    fresh = (np.random.default_rng(5).normal(size=(20000, 6)) * [1, 5, 0.1, 2, 1, 1] + 3).astype(np.float32)
    logits = 2 * (binary.statistics.normalise(fresh.astype(np.float64)) @ TRUE_WEIGHT) - 1
    is_ill = np.random.default_rng(6).random(20000) < 1 / (1 + np.exp(-logits))
    weight = np.where(is_ill, 0.5 / is_ill.mean(), 0.5 / (1 - is_ill.mean()))
    probability = binary.predict(fresh)
    for low in (0.1, 0.3, 0.5, 0.7):
        is_near = (probability >= low) & (probability < low + 0.2)
        share = np.average(is_ill[is_near], weights=weight[is_near])
        assert share == pytest.approx(probability[is_near].mean(), abs=0.08)


def test_probabilities_of_separable_classes_are_near_certain(z, along):
    direction = fit_direction(z[:200], along[:200] > 0, target="side", model=MODEL)
    clear = np.abs(along[:200]) > 0.7
    assert direction.score > 0.99
    assert np.abs(direction.predict(z[:200])[clear] - (along[:200][clear] > 0)).max() < 0.2


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


def test_strength_zero_changes_no_bit(binary, z):
    z = z.copy()
    z[0, 0] = -0.0
    moved = binary.move(z, 0)
    assert moved.dtype == z.dtype
    np.testing.assert_array_equal(moved.view(np.uint32), z.view(np.uint32))
    assert binary.move(z[3], 1).shape == (6,)


@pytest.mark.parametrize("kind", ["binary", "continuous"])
def test_json_loses_nothing(kind, z, request):
    direction = request.getfixturevalue(kind)
    again = Direction.from_json(json.loads(json.dumps(direction.to_json(), allow_nan=False)))
    assert again.to_json() == direction.to_json()
    np.testing.assert_array_equal(again.predict(z), direction.predict(z))
    np.testing.assert_array_equal(again.move(z, 1.3), direction.move(z, 1.3))
    again.check_fits(MODEL, 6)


def test_direction_of_another_model_is_refused(binary):
    with pytest.raises(ConfigError, match="another model \\(aaaaaaaa, this one is bbbbbbbb\\)"):
        binary.check_fits("b" * 64, 6)
    with pytest.raises(ConfigError, match="z_sem of 6 numbers, but this model has 8"):
        binary.check_fits(MODEL, 8)


def test_z_and_strengths_that_do_not_fit_are_refused(binary, z):
    with pytest.raises(ConfigError, match="same model"):
        binary.distance(z[:, :5])
    with pytest.raises(ConfigError, match="not finite"):
        binary.predict(np.full((1, 6), np.nan))
    with pytest.raises(ConfigError, match="along: 'up' is not one of pattern, weight"):
        binary.move(z, 1, along="up")
    with pytest.raises(ConfigError, match="strength: nan is not finite"):
        binary.move(z, float("nan"))


def test_missing_labels_are_omitted_and_counted(z, labels):
    named = np.where(labels == 1, "ill", "well").astype(object)
    named[:50], named[50:70], named[70:75], named[75] = None, float("nan"), pd.NA, "  "
    direction = fit_direction(z, named, target="ill", model=MODEL, positive="ill")
    assert (direction.num_cases, direction.num_omitted, direction.classes) == (524, 76, ("well", "ill"))
    # statistics of all cases, the fit of the labelled ones
    alone = fit_direction(
        z[76:], named[76:], target="ill", model=MODEL, positive="ill", statistics=LatentStatistics.of(z)
    )
    np.testing.assert_array_equal(direction.weight, alone.weight)


def test_positive_class_turns_the_direction(z, labels):
    up = fit_direction(z, labels, target="ill", model=MODEL)
    down = fit_direction(z, labels, target="ill", model=MODEL, positive="0")
    assert down.classes == ("1", "0")
    np.testing.assert_allclose(down.weight, -up.weight, atol=1e-3)


def test_one_class_of_several_against_the_rest(z, along):
    grade = np.digitize(along, [-0.5, 0.5])
    direction = fit_direction(z, grade, target="grade", model=MODEL, positive=2)
    assert (direction.kind, direction.classes) == ("binary", ("not 2", "2"))
    assert direction.weight @ TRUE_WEIGHT > 0.98
    np.testing.assert_array_equal(direction.truth([0, 1.0, 2, "2"]), [0, 0, 1, 1])
    assert fit_direction(z, grade, target="grade", model=MODEL).kind == "continuous"


def test_truth_of_labels(binary, continuous):
    np.testing.assert_array_equal(binary.truth([1, 0.0, "1", np.int64(0)]), [1, 0, 1, 0])
    np.testing.assert_array_equal(continuous.truth([40, 50.5]), [40, 50.5])
    with pytest.raises(ConfigError, match="neither '0' nor '1'"):
        binary.truth([0, 2])
    with pytest.raises(ConfigError, match="not numbers"):
        continuous.truth(["old"])
    with pytest.raises(ConfigError, match="no label"):
        binary.truth([None, 1])


def test_groups_are_not_on_both_sides_of_a_fold():
    # each patient's cases are alike and labels are a coin a patient: only a leak tells them
    generator = np.random.default_rng(3)
    patients = np.repeat(np.arange(30), 8)
    z = np.repeat(generator.normal(size=(30, 60)), 8, axis=0) + 0.01 * generator.normal(size=(240, 60))
    label = np.repeat(generator.permutation(np.arange(30) % 2), 8)
    age = np.repeat(generator.normal(size=30), 8)
    for labels in (label, age):
        leaking = fit_direction(z, labels, target="t", model=MODEL)
        honest = fit_direction(z, labels, target="t", model=MODEL, groups=patients)
        assert leaking.score > 0.95
        assert honest.score < 0.75


def test_noise_has_no_score_and_probabilities_of_a_half(z):
    labels = np.random.default_rng(4).integers(2, size=600)
    direction = fit_direction(z, labels, target="coin", model=MODEL)
    assert direction.score < 0.6
    assert np.abs(direction.predict(z) - 0.5).max() < 0.2
    ages = np.random.default_rng(4).normal(size=600)
    assert fit_direction(z, ages, target="noise", model=MODEL).score < 0.05


def test_dimensions_that_never_vary_have_no_weight(z, labels):
    z = z.copy()
    z[:, 4] = 7
    direction = fit_direction(z, labels, target="ill", model=MODEL)
    assert direction.weight[4] == 0
    assert (direction.move(z, 3)[:, 4] == 7).all()


def test_few_labels_are_balanced_and_nested(z, labels):
    target = read_target(labels, "ill")
    small, large = balanced_choice(target, 10, seed=1), balanced_choice(target, 40, seed=1)
    assert (small.values.sum(), large.values.sum()) == (5, 20)
    assert set(small.rows) < set(large.rows)
    assert set(small.rows) != set(balanced_choice(target, 10, seed=2).rows)
    np.testing.assert_array_equal(labels[small.rows], small.values)
    rare = read_target([1, 1, 1] + [0] * 30, "rare")
    assert balanced_choice(rare, 12, seed=0).values.sum() == 3
    direction = fit_direction(z, labels, target="ill", model=MODEL, max_cases=40)
    assert (direction.num_cases, direction.num_omitted) == (40, 0)
    assert direction.weight @ TRUE_WEIGHT > 0.7
    np.testing.assert_array_equal(direction.statistics.std, LatentStatistics.of(z).std)


def test_a_seed_gives_the_same_direction(z, labels):
    first, again = (fit_direction(z, labels, target="t", model=MODEL, max_cases=60, seed=3) for _ in range(2))
    assert first.to_json() == again.to_json()


COLOURS = ["red", "green", "blue", "red"] * 3


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([1] * 12, {}, "12 of 12 cases have it, all '1'"),
        ([None] * 12, {}, "0 of 12 cases have it;"),
        (COLOURS, {}, "text with 3 classes \\(blue, green, red\\); choose one of them as positive"),
        (COLOURS, {"positive": "pink"}, "positive: target 't' has no class 'pink'; it has blue, green, red"),
        ([0, 1, 1] + [None] * 9, {}, "1 of '0' \\(1 patients\\) and 2 of '1' \\(2 patients\\) are too few"),
        ([0] * 11 + [1], {}, "11 of '0' .* and 1 of '1'"),
        ([0] * 6 + [1] * 6, {"groups": list("aaaaaabbbbcc")}, "6 of '0' \\(1 patients\\)"),
        ([1, 0, 0, 1] + [None] * 8, {"groups": [1, 2, 1, 0] + [9] * 8}, "cannot be divided"),
        ([1.5, 2.5, 3.5] + [None] * 9, {}, "3 labelled cases of 3 patients are too few"),
        (list(range(12)), {"groups": ["a"] * 12}, "12 labelled cases of 1 patients"),
        ([*range(11), float("inf")], {}, "infinite"),
        (list(range(12)), {"max_cases": 3}, "3 labelled cases"),
        ([0, 1] * 5, {}, "labels: there are 10 for 12"),
        ([0, 1] * 6, {"groups": [1]}, "groups: there are 1 for 12"),
    ],
)
def test_labels_that_give_no_direction_are_refused(labels, options, message):
    z = np.random.default_rng(0).normal(size=(12, 3))
    with pytest.raises(ConfigError, match=message):
        fit_direction(z, labels, **{"target": "t", "model": MODEL, **options})


def test_z_that_gives_no_direction_is_refused():
    z = np.random.default_rng(0).normal(size=(12, 3))
    with pytest.raises(ConfigError, match="same model"):
        fit_direction(z, [0, 1] * 6, target="t", model=MODEL, statistics=LatentStatistics.of(z[:, :2]))
    z[:8] = z[0]
    with pytest.raises(ConfigError, match="same for all labelled"):
        fit_direction(z, [0, 1] * 4 + [None] * 4, target="t", model=MODEL)
