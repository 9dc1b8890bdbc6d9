import numpy as np
import pytest

from monai_diffae.errors import ConfigError
from monai_diffae.latents.probes import (
    _auroc,
    _ranked,
    classifier_probe,
    pca_features,
    ridge_probe,
    score_with_interval,
)


@pytest.fixture
def features():
    return np.random.default_rng(1).normal(size=(400, 6))


def split(x, y):
    return x[:300], y[:300], x[300:], y[300:]


def test_ridge_recovers_known_r2(features):
    # variance 1 explained, 1 not: R2 = 0.5
    y = features[:, 2] + np.random.default_rng(2).normal(size=400)
    result = ridge_probe(*split(features, y))
    assert result.metric == "r2"
    assert result.low < 0.5 < result.high
    assert 0.05 < result.high - result.low < 0.5
    assert (result.num_train, result.num_test) == (300, 100)


def test_ridge_does_not_depend_on_the_scale_of_features(features):
    y = features[:, 0] + 0.1 * features[:, 1]
    scores = [ridge_probe(*split(features * scale, y)).score for scale in (np.ones(6), np.logspace(-4, 4, 6))]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


def test_noise_has_no_r2_and_auroc_of_half(features):
    y = np.random.default_rng(3).normal(size=400)
    assert ridge_probe(*split(features, y)).low < 0.02
    result = classifier_probe(*split(features, y > 0.8))
    assert result.low < 0.5 < result.high


def test_bootstrap_over_groups_is_wider_than_over_cases():
    generator = np.random.default_rng(4)
    x = np.repeat(generator.normal(size=(40, 1)), 10, axis=0)
    y = x[:, 0] + np.repeat(generator.normal(size=40), 10)
    groups = np.repeat(np.arange(40), 10)[200:]
    arguments = (x[:200], y[:200], x[200:], y[200:])
    by_case, by_group = ridge_probe(*arguments), ridge_probe(*arguments, groups_test=groups)
    assert by_case.score == by_group.score
    assert by_group.high - by_group.low > 1.5 * (by_case.high - by_case.low)


def test_classifier_of_three_classes_is_the_mean_of_one_against_the_rest(features):
    y = np.digitize(features[:, 0], [-0.5, 0.5]).astype(str)
    result = classifier_probe(*split(features, y))
    assert result.metric == "auroc"
    assert result.score > 0.8


def test_unbalanced_classes_are_weighed(features):
    y = np.where(features[:, 0] > 1.5, "ill", "well")
    assert classifier_probe(*split(features, y)).score > 0.95


def test_pca_is_fitted_to_training_images_alone():
    images = np.random.default_rng(5).normal(size=(30, 1, 5, 5))
    train, _ = pca_features(images[:20], images[20:], 4)
    other, _ = pca_features(images[:20], images[20:] * 100, 4)
    np.testing.assert_array_equal(train, other)
    assert pca_features(images[:20], images[20:], 500)[0].shape == (20, 20)


@pytest.mark.parametrize(
    ("run", "target", "message"),
    [
        (ridge_probe, np.zeros(20), "same for all"),
        (ridge_probe, np.r_[np.nan, np.arange(19.0)], "not finite"),
        (classifier_probe, np.zeros(20), "two classes"),
        (classifier_probe, np.r_[np.arange(15) % 2, [7] * 5], "training has too"),
    ],
)
def test_targets_that_cannot_be_probed_are_refused(run, target, message):
    x = np.random.default_rng(6).normal(size=(20, 2))
    with pytest.raises(ConfigError, match=message):
        run(x[:15], target[:15], x[15:], target[15:])


def test_too_few_cases_are_refused():
    with pytest.raises(ConfigError, match="too few"):
        ridge_probe(np.ones((2, 1)), [0, 1], np.ones((2, 1)), [0, 1])


def test_weighted_auroc_with_ties_is_sklearns():
    from sklearn.metrics import roc_auc_score

    generator = np.random.default_rng(7)
    target, score = generator.integers(2, size=60), generator.integers(6, size=60) / 6
    weights = generator.integers(4, size=60).astype(float)
    ranked = _ranked(target, np.stack([1 - score, score], axis=1), np.array([0, 1]))
    assert _auroc(ranked, weights) == pytest.approx(roc_auc_score(target, score, sample_weight=weights))


def test_scores_of_predictions_are_sklearns_with_an_interval_around():
    from sklearn.metrics import r2_score, roc_auc_score

    generator = np.random.default_rng(8)
    value = generator.normal(size=200)
    predicted = value + generator.normal(size=200)
    for metric, target, sklearns in (("auroc", value > 0, roc_auc_score), ("r2", value, r2_score)):
        score, low, high = score_with_interval(metric, target, predicted)
        assert score == pytest.approx(sklearns(target, predicted))
        assert low < score < high
    with pytest.raises(ConfigError, match="same for all"):
        score_with_interval("auroc", np.ones(5), np.arange(5))
    with pytest.raises(ConfigError, match="as many predictions"):
        score_with_interval("r2", np.arange(4), np.arange(5))
