import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from monai_diffae.errors import ConfigError
from monai_diffae.latents.probing.scores import ClassScores, NumberScores, bootstrapped, interval, score_with_interval


def predictions(seed, num_classes, num=80):
    generator = np.random.default_rng(seed)
    truth = np.r_[np.arange(num_classes), generator.integers(num_classes, size=num - num_classes)]
    raw = generator.integers(1, 6, size=(num, num_classes)) + 2.0 * np.eye(num_classes)[truth]  # with many ties
    return truth, raw / raw.sum(axis=1, keepdims=True), generator


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), num_classes=st.integers(2, 4), weighted=st.booleans())
def test_scores_of_classes_are_sklearns(seed, num_classes, weighted):
    truth, p, generator = predictions(seed, num_classes)
    weights = generator.integers(4, size=len(truth)).astype(float) if weighted else np.ones(len(truth))
    weights[:num_classes] = 1  # no class without a case
    auroc, auprc, balanced, brier = ClassScores(truth, p)(weights)
    scored = [1] if num_classes == 2 else range(num_classes)
    one = [(truth == k, p[:, k]) for k in scored]
    assert auroc == pytest.approx(np.mean([metrics.roc_auc_score(y, s, sample_weight=weights) for y, s in one]))
    assert auprc == pytest.approx(
        np.mean([metrics.average_precision_score(y, s, sample_weight=weights) for y, s in one])
    )
    assert balanced == pytest.approx(metrics.balanced_accuracy_score(truth, p.argmax(axis=1), sample_weight=weights))
    sklearns = sum(metrics.brier_score_loss(y, s, sample_weight=weights) for y, s in one)
    assert brier == pytest.approx(sklearns)


def test_auroc_of_several_classes_is_sklearns_one_against_the_rest():
    truth, p, _ = predictions(0, 3)
    assert ClassScores(truth, p)(np.ones(80))[0] == pytest.approx(metrics.roc_auc_score(truth, p, multi_class="ovr"))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6))
def test_scores_of_numbers_are_sklearns(seed):
    generator = np.random.default_rng(seed)
    truth, weights = generator.normal(size=50), generator.integers(4, size=50) + 0.1
    predicted = truth + generator.normal(size=50)
    r2, mae = NumberScores(truth, predicted)(weights)
    assert r2 == pytest.approx(metrics.r2_score(truth, predicted, sample_weight=weights))
    assert mae == pytest.approx(metrics.mean_absolute_error(truth, predicted, sample_weight=weights))


def test_the_predicted_class_need_not_be_the_most_probable():
    truth, p = np.array([0, 0, 1, 1]), np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    plain, better = ClassScores(truth, p)(np.ones(4)), ClassScores(truth, p, [0, 0, 1, 1])(np.ones(4))
    assert (plain[2], better[2]) == (0.5, 1)
    np.testing.assert_array_equal(plain[[0, 1, 3]], better[[0, 1, 3]])


def test_scores_that_are_not_defined_are_nan_and_not_part_of_the_interval():
    truth, p, _ = predictions(1, 2)
    auroc, auprc, balanced, brier = ClassScores(truth, p)((truth == 1).astype(float))
    assert np.isnan([auroc, auprc]).all()
    assert np.isfinite([balanced, brier]).all()
    assert interval(np.array([np.nan, 1.0, np.nan])) == (1, 1)
    assert np.isnan(interval(np.array([np.nan]))).all()


def test_draws_are_of_groups_paired_and_do_not_depend_on_the_order_of_cases_in_a_group():
    truth, p, _ = predictions(2, 2)
    groups, order = np.arange(80) // 4, np.arange(80).reshape(20, 4)[:, ::-1].ravel()
    draws = bootstrapped(ClassScores(truth, p), groups, seed=3)
    np.testing.assert_allclose(bootstrapped(ClassScores(truth[order], p[order]), groups[order], seed=3), draws)
    assert not np.allclose(bootstrapped(ClassScores(truth, p), groups, seed=4), draws)
    same = bootstrapped(ClassScores(truth, p**2), groups, seed=3)  # ranks alike
    assert not (same[:, 0] - draws[:, 0]).any()
    by_case = bootstrapped(NumberScores(np.repeat(truth, 4), np.repeat(p[:, 1], 4)), np.arange(320))
    by_group = bootstrapped(NumberScores(np.repeat(truth, 4), np.repeat(p[:, 1], 4)), np.repeat(np.arange(80), 4))
    assert by_group[:, 0].std() > 1.5 * by_case[:, 0].std()


def test_scores_of_predictions_are_sklearns_with_an_interval_around():
    generator = np.random.default_rng(8)
    value = generator.normal(size=200)
    predicted = value + generator.normal(size=200)
    for metric, target, sklearns in (
        ("auroc", value > 0, metrics.roc_auc_score),
        ("r2", value, metrics.r2_score),
    ):
        score, low, high = score_with_interval(metric, target, predicted)
        assert score == pytest.approx(sklearns(target, predicted))
        assert low < score < high
    with pytest.raises(ConfigError, match="same for all"):
        score_with_interval("auroc", np.ones(5), np.arange(5))
    with pytest.raises(ConfigError, match="as many predictions"):
        score_with_interval("r2", np.arange(4), np.arange(5))
