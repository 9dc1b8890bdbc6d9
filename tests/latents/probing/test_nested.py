import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, mean_absolute_error, r2_score, roc_auc_score

from monai_diffae.errors import ConfigError
from monai_diffae.latents.probing.nested import (
    cross_validation_folds,
    few_label_scores,
    predict_held_out,
    split_folds,
)
from monai_diffae.latents.probing.scores import bootstrapped, interval
from monai_diffae.latents.probing.targets import read_probe_target


def cross_validated(x, labels, patients, probe="linear", seed=0):
    target, folds = cross_validation_folds(read_probe_target(list(labels), "label"), patients, seed)
    groups = patients[target.rows]
    return predict_held_out([x[target.rows]] * len(folds), target, groups, folds, probe, seed)


@pytest.mark.parametrize("probe", ["linear", "knn"])
def test_what_only_identifies_the_patient_is_not_rewarded(probe):
    # every patient has a signature in the features, and a class: known patients would be told without an error
    aurocs, holds_half = [], []
    for seed in range(3):
        generator = np.random.default_rng(seed)
        patients = np.repeat(np.arange(60), 5)
        x = np.repeat(generator.normal(size=(60, 60)), 5, axis=0) + 0.01 * generator.normal(size=(300, 60))
        labels = np.repeat(generator.permutation(60) % 3 == 0, 5)
        scores = cross_validated(x, labels, patients, probe).scores()
        low, high = interval(bootstrapped(scores, patients)[:, 0])
        aurocs.append(scores(np.ones(300))[0])
        holds_half.append(low < 0.5 < high)
    assert 0.4 < np.mean(aurocs) < 0.6
    assert sum(holds_half) >= 2
    by_case = cross_validated(x, labels, np.arange(300), probe)  # as if each case were a patient: the leak
    assert by_case.scores()(np.ones(300))[0] > 0.9


def test_a_known_r2_and_scores_that_are_sklearns():
    generator = np.random.default_rng(4)
    x = generator.normal(size=(300, 6))
    y = x[:, 2] + generator.normal(size=300)  # half of the variance
    result = cross_validated(x, y, np.arange(300))
    r2, mae = result.scores()(np.ones(300))
    assert 0.4 < r2 < 0.6
    assert r2 == pytest.approx(r2_score(y, result.predicted))
    assert mae == pytest.approx(mean_absolute_error(y, result.predicted))
    classes = cross_validated(x, y > 0.7, np.arange(300))
    auroc, _, balanced, brier = classes.scores()(np.ones(300))
    assert auroc == pytest.approx(roc_auc_score(y > 0.7, classes.predicted[:, 1]))
    assert brier == pytest.approx(brier_score_loss(y > 0.7, classes.predicted[:, 1]))
    assert balanced == pytest.approx(balanced_accuracy_score(y > 0.7, classes.predicted_class))


def test_each_case_is_predicted_by_the_fold_that_did_not_have_its_patient():
    generator = np.random.default_rng(5)
    x, patients = generator.normal(size=(100, 3)), np.arange(100) // 2
    result = cross_validated(x, x[:, 0] > 0, patients)
    assert result.target.rows.tolist() == list(range(100))
    assert set(result.fold) == set(range(5))
    assert (result.fold[::2] == result.fold[1::2]).all()
    changed = x.copy()
    changed[result.fold == 0] = np.random.default_rng(6).normal(size=((result.fold == 0).sum(), 3))
    other = cross_validated(changed, x[:, 0] > 0, patients)
    assert not np.array_equal(other.predicted[result.fold == 1], result.predicted[result.fold == 1])
    one = split_folds(result.target, patients, result.fold != 0, result.fold == 0)
    alone = predict_held_out([x], one[0], patients, one[1], "linear")
    np.testing.assert_array_equal(alone.predicted, result.predicted[result.fold == 0])


def test_the_same_seed_gives_the_same_and_another_seed_others():
    generator = np.random.default_rng(7)
    x, labels = generator.normal(size=(80, 3)), generator.random(80) < 0.5
    first, again, other = (cross_validated(x, labels, np.arange(80), seed=seed).predicted for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_classes_that_are_too_small_are_omitted():
    labels = ["a"] * 20 + ["b"] * 20 + ["c"] * 6
    patients = np.r_[np.arange(40), [50, 50, 50, 51, 51, 51]]
    target, folds = cross_validation_folds(read_probe_target(labels, "kind"), patients)
    assert (target.classes, len(target.rows), len(folds)) == (("a", "b"), 40, 5)
    is_train = np.r_[np.arange(40) % 2 == 0, [True, True, True, False, False, False]]
    target, ((train, test),) = split_folds(read_probe_target(labels, "kind"), patients, is_train, ~is_train)
    assert (target.classes, len(train), len(test)) == (("a", "b"), 20, 20)
    with pytest.raises(
        ConfigError, match=r"at least two classes must be large enough \(b: 20, c: 2 patients, at least"
    ):
        cross_validation_folds(read_probe_target(labels[20:], "kind"), patients[20:])


def test_a_patient_on_both_sides_is_refused_and_counted():
    patients = np.r_[np.arange(20), np.arange(3), np.arange(20, 37)]
    is_train = np.arange(40) < 20
    target = read_probe_target(list(np.arange(40) % 2), "label")
    with pytest.raises(ConfigError, match="^evaluation: 3 patients have both training and test cases; give each"):
        split_folds(target, patients, is_train, ~is_train)


@pytest.mark.parametrize("is_single", [np.arange(12) < 5, np.arange(12) > 6])
def test_a_single_patient_on_a_side_is_refused(is_single):
    target, patients = read_probe_target(list(np.arange(12) * 1.0), "age"), np.where(is_single, 99, np.arange(12))
    for is_train, counts in ((is_single, "1 training and 7 test"), (~is_single, "7 training and 1 test")):
        with pytest.raises(ConfigError, match=f"^target 'age': {counts} patients are too few; at least 2 of each"):
            split_folds(target, patients, is_train, ~is_train)


@pytest.mark.parametrize(
    ("labels", "message"),
    [(np.arange(12) * 1.0, "11 training and 1 test cases are too few"), ([1, 2] * 6, "large enough")],
)
def test_too_few_cases_are_refused(labels, message):
    is_test = np.arange(12) == 11
    with pytest.raises(ConfigError, match=message):
        split_folds(read_probe_target(list(labels), "label"), np.arange(12), ~is_test, is_test)
    with pytest.raises(ConfigError, match="are too few"):
        cross_validation_folds(read_probe_target(list(range(11)), "age"), np.zeros(11))


@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_more_labels_give_better_scores(kind):
    generator = np.random.default_rng(9)
    x, patients = generator.normal(size=(240, 8)), np.arange(240) // 2
    y = x @ generator.normal(size=8) + generator.normal(size=240)
    labels = y if kind == "numbers" else y > 2
    target, folds = cross_validation_folds(read_probe_target(list(labels), "label"), patients)
    arguments = [x] * len(folds), target, patients, folds, "knn"
    scores = [few_label_scores(*arguments, num_patients=num) for num in (10, 30, 90)]
    assert [len(each) for each in scores] == [20] * 3
    assert np.median(scores[0]) < np.median(scores[1]) < np.median(scores[2])
    np.testing.assert_array_equal(scores[0], few_label_scores(*arguments, num_patients=10))
    assert np.isnan(few_label_scores(*arguments, num_patients=97)).all()  # four fifths of 120 patients are 96


def test_a_few_labels_are_of_two_patients_of_each_class_at_least():
    generator = np.random.default_rng(10)
    x, patients = generator.normal(size=(400, 2)), np.arange(400)
    target, folds = cross_validation_folds(read_probe_target(["rare"] * 8 + ["common"] * 392, "kind"), patients)
    arguments = [x] * len(folds), target, patients, folds, "linear"
    assert np.isfinite(few_label_scores(*arguments, num_patients=10)).all()
    assert np.isnan(few_label_scores(*arguments, num_patients=3)).all()
