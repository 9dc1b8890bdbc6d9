"""Probes on held-out patients: folds, features that are fitted in each fold, and few labels."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from monai_diffae.errors import ConfigError
from monai_diffae.latents.probing import FeatureSet, ProbeSettings, evaluate_probes, nested
from monai_diffae.latents.probing.probes import ProbeModel
from monai_diffae.latents.probing.scores import NumberScores, bootstrapped, interval
from monai_diffae.latents.targets import read_target


def cross_validated(x, labels, patients):
    target, folds = nested.cross_validation_folds(read_target(list(labels), "label"), patients)
    return nested.predict_held_out([x[target.rows]] * len(folds), target, patients[target.rows], folds, ProbeModel())


def test_what_only_identifies_the_patient_is_not_rewarded():
    # every patient has a signature in the features, and a class: known patients would be told without an error
    aurocs, holds_half = [], []
    for seed in range(2):
        generator = np.random.default_rng(seed)
        patients = np.repeat(np.arange(60), 5)
        x = np.repeat(generator.normal(size=(60, 60)), 5, axis=0) + 0.01 * generator.normal(size=(300, 60))
        labels = np.repeat(generator.permutation(60) % 3 == 0, 5)
        scores = cross_validated(x, labels, patients).scores()
        low, high = interval(bootstrapped(scores, patients)[:, 0])
        aurocs.append(scores(np.ones(300))[0])
        holds_half.append(low < 0.5 < high)
    assert 0.4 < np.mean(aurocs) < 0.6
    assert any(holds_half)
    by_case = cross_validated(x, labels, np.arange(300))  # as if each case were a patient: the leak
    assert by_case.scores()(np.ones(300))[0] > 0.9


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
    one = nested.split_folds(result.target, patients, result.fold != 0, result.fold == 0)
    alone = nested.predict_held_out([x], one[0], patients, one[1], ProbeModel())
    np.testing.assert_array_equal(alone.predicted, result.predicted[result.fold == 0])


def test_classes_that_are_too_small_are_omitted():
    labels = ["a"] * 20 + ["b"] * 20 + ["c"] * 6
    patients = np.r_[np.arange(40), [50, 50, 50, 51, 51, 51]]
    target, folds = nested.cross_validation_folds(read_target(labels, "kind"), patients)
    assert (target.classes, len(target.rows), len(folds)) == (("a", "b"), 40, 5)
    is_train = np.r_[np.arange(40) % 2 == 0, [True, True, True, False, False, False]]
    target, ((train, test),) = nested.split_folds(read_target(labels, "kind"), patients, is_train, ~is_train)
    assert (target.classes, len(train), len(test)) == (("a", "b"), 20, 20)
    with pytest.raises(
        ConfigError, match=r"at least two classes must be large enough \(b: 20, c: 2 patients, at least"
    ):
        nested.cross_validation_folds(read_target(labels[20:], "kind"), patients[20:])


@pytest.mark.slow
def test_more_labels_give_better_scores():
    generator = np.random.default_rng(9)
    x, patients = generator.normal(size=(240, 8)), np.arange(240) // 2
    y = x @ generator.normal(size=8) + generator.normal(size=240)
    target, folds = nested.cross_validation_folds(read_target(list(y), "label"), patients)
    arguments = [x] * len(folds), target, patients, folds, ProbeModel("knn")
    scores = [nested.few_label_scores(*arguments, num) for num in (10, 30, 90)]
    assert np.median(scores[0]) < np.median(scores[1]) < np.median(scores[2])
    np.testing.assert_array_equal(scores[0], nested.few_label_scores(*arguments, 10))
    assert np.isnan(nested.few_label_scores(*arguments, 97)).all()  # four fifths of 120 patients are 96
    # two patients of each class at least
    rare = read_target(["rare"] * 8 + ["common"] * 392, "kind")
    target, folds = nested.cross_validation_folds(rare, np.arange(400))
    arguments = [generator.normal(size=(400, 2))] * len(folds), target, np.arange(400), folds, ProbeModel()
    assert np.isfinite(nested.few_label_scores(*arguments, 10)).all()
    assert np.isnan(nested.few_label_scores(*arguments, 3)).all()


def test_features_are_finite_and_pca_is_fitted_to_the_training_cases_of_a_fold():
    values = np.array([[1.0], [np.nan]])  # which matters only for cases that have the features
    assert FeatureSet.from_values("f", values, np.array([True, False])).columns == ()
    with pytest.raises(ConfigError, match="^f: the features of 1 cases contain values that are missing, infinite or"):
        FeatureSet.from_values("f", values)
    images = np.random.default_rng(1).normal(size=(30, 1, 4, 4)).astype(np.float32)
    changed = images.copy()
    changed[20:] *= 50
    train = np.arange(20)
    first, second = (FeatureSet.pca(x, 3).extract(train) for x in (images, changed))
    np.testing.assert_allclose(first[:20], second[:20], atol=1e-5)
    assert not np.allclose(first, FeatureSet.pca(images, 3).extract(train + 10), atol=0.1)


def test_feature_sets_are_compared_on_the_same_cases_and_targets_that_cannot_be_probed_are_omitted():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3))
    table = pd.DataFrame({"id": range(60), "patient": np.arange(60) // 2, "age": x[:, 0], "site": 1})
    is_available = np.arange(60) < 50
    sets = [FeatureSet.from_values("z_sem", x), FeatureSet.from_values("noise", rng.normal(size=(60, 2)), is_available)]
    settings = ProbeSettings("cv", probes=("linear",), few_labels=True)
    evaluated, omitted = evaluate_probes(table, ["site", "age"], sets, settings)
    assert list(omitted) == ["site"]
    assert not omitted["site"].startswith("target")
    assert [probe.row["features"] for probe in evaluated] == ["z_sem", "noise"]
    assert [len(probe.predictions.predicted) for probe in evaluated] == [50, 50]
    assert evaluated[0].row["difference"] is None
    assert evaluated[1].row["difference_low"] > 0.5
    assert [row["num_patients"] for row in evaluated[0].few_labels] == [10]
    fixed, _ = evaluate_probes(table, ["age"], sets[:1], replace(settings, regularisation=1e9))
    assert fixed[0].few_labels[0]["median"] < 0.01 < 0.5 < evaluated[0].few_labels[0]["median"]
    with pytest.raises(ConfigError, match="^target 'site'"):
        evaluate_probes(table, ["site"], sets, settings)


def probe_scanners(label, scanner, z):
    patients = range(len(z))
    table = pd.DataFrame({"id": patients, "patient": patients, "label": label, "scanner": scanner})
    settings = ProbeSettings("cv", probes=("linear",), nuisance="scanner")
    ((probe,), _) = evaluate_probes(table, ["label"], [FeatureSet.from_values("z_sem", z)], settings)
    return probe


@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_differences_between_scanners_are_no_prediction_for_one_that_was_left_out(kind):
    """Scanners shift a feature, and have more ill (or older) patients; within a scanner, there is nothing to learn."""
    generator = np.random.default_rng(0)
    scanner = np.arange(150) % 3
    z = np.column_stack([scanner + 0.2 * generator.normal(size=150), generator.normal(size=(150, 2))])
    age = 10.0 * scanner + generator.normal(size=150)
    probe = probe_scanners(age if kind == "numbers" else generator.random(150) < 0.1 + 0.4 * scanner, scanner, z)
    chance = 0.0 if kind == "numbers" else 0.5
    assert probe.row["low"] > chance + 0.1
    assert probe.row["left_out_low"] < chance
    assert [row["num_test"] for row in probe.left_out] == [50, 50, 50]


@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_an_effect_that_holds_on_all_scanners_does_not_change_without_one(kind):
    generator = np.random.default_rng(0)
    scanner, own = np.arange(240) % 3, generator.normal(size=240)
    score = own + 2 * scanner  # the label also differs between the scanners
    z = np.column_stack([score, generator.normal(size=240)])
    label = score + generator.normal(size=240)
    probe = probe_scanners(label if kind == "numbers" else label > 2, scanner, z)
    assert abs(probe.row["left_out_change"]) < 0.05 < probe.row["score"] - probe.row["left_out_score"]


def test_no_interval_leaves_the_range_of_its_score():
    generator = np.random.default_rng(0)
    for truth, predicted in (
        (generator.normal(size=5), 9 * generator.normal(size=5)),
        (np.arange(5.0), np.arange(5.0)),
    ):
        scores = NumberScores(truth, predicted, np.zeros(5))
        draws = bootstrapped(scores, np.arange(5), num_folds=2, perfect=scores.perfect)
        (_, r2_high), (mae_low, _) = scores.intervals(draws, np.arange(5))
        assert r2_high <= 1
        assert mae_low >= 0
