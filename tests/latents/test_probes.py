"""Probes: the targets, the models, the scores, and the quick probe of a training."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from monai_diffae.errors import ConfigError
from monai_diffae.latents.probing import probes
from monai_diffae.latents.probing.nested import QuickProbe
from monai_diffae.latents.probing.probes import ProbeModel
from monai_diffae.latents.probing.scores import ClassScores, NumberScores, bootstrapped, difference_interval, interval
from monai_diffae.latents.targets import are_classes, copies_of, far_off, read_line_target, read_target


def test_one_rule_says_which_labels_are_classes_and_it_is_the_same_for_all_who_read_labels(caplog):
    whole = read_target([10, 2, 2, 10], "grade")
    assert whole.classes == read_target([10.0, 2.0, None, 10.0], "grade").classes == ("2", "10")
    assert whole.values.tolist() == [1, 0, 0, 1]
    assert read_target([True, False], "is_ill").classes == ("False", "True")
    assert read_target([0, 1, "NA", " "], "is_ill").classes == ("0", "1")  # the words that are missing in tables
    stage = [0, 1, 2, 3, 4] * 5
    assert read_target(stage, "stage").classes is not None
    assert read_target(stage, "stage", np.arange(3)).classes is not None  # all labels count
    numbers = ([31, 45, 52, 60, 38], list(range(10)), list(np.arange(15)) * 9, [0.5, 1, 1.5] * 9, [-1, 0, 1] * 9)
    for labels in numbers:  # ages of five people, more values than 10, fractions, and values below 0
        assert read_target(labels, "age").classes is None
        assert read_line_target(labels, "age").classes is None
        assert not are_classes(labels)
        assert read_target(labels, "age", kind="classes").classes is not None
    assert (read_line_target(stage, "stage").num_classes, read_line_target([0, 1] * 3, "ill").num_classes) == (None, 2)
    assert read_line_target([0, 1] * 3, "ill", kind="numbers").classes is None
    for options, message in (({"kind": "classes"}, "has 5 classes"), ({"kind": "numbers", "positive": 1}, "positive")):
        with pytest.raises(ConfigError, match=message):
            read_line_target(stage, "stage", **options)
    with pytest.raises(ConfigError, match="^kind: some labels are text"):
        read_target(["a", "b"], "state", kind="numbers")
    assert not caplog.messages
    assert read_target(["Yes", "yes", "no"], "ill").classes == ("Yes", "no", "yes")
    assert "target 'ill': 'Yes', 'yes' differ only in upper and lower case" in caplog.text


def test_missing_labels_are_omitted_cases_keep_the_requested_order_and_classes_can_be_left_out():
    target = read_target(["b", None, " ", "a", np.nan, "b"], "kind", np.array([5, 4, 3, 2, 1, 0]))
    assert target.rows.tolist() == [5, 3, 0]
    assert target.values.tolist() == [1, 0, 1]
    target = read_target(["a", "b", "b", "c", "c", "c"], "kind")
    assert target.patients_of_classes(np.array([1, 1, 2, 3, 3, 4])) == {"a": 1, "b": 2, "c": 2}
    fewer = target.only(np.array([True, False, False, True, True, True]))
    assert (fewer.classes, fewer.values.tolist(), fewer.rows.tolist()) == (("a", "c"), [0, 1, 1, 1], [0, 3, 4, 5])


@pytest.mark.parametrize(
    ("read", "labels", "message"),
    [
        (read_target, [3, 3, None], "2 of 3 cases have it, all '3'; choose one that varies"),
        (read_target, [*range(20), -1e31], "contains infinite numbers or some above 1e30"),
        (read_line_target, [1, np.inf, 1], "contains infinite numbers or some above 1e30"),
        (read_target, [f"word {i}" for i in range(21)], "has 21 different classes"),
    ],
)
def test_labels_that_are_no_targets_are_refused(read, labels, message):
    with pytest.raises(ConfigError, match=f"^target 'label': .*{message}"):
        read(labels, "label")


def test_typing_errors_and_codes_are_far_off_and_skewed_amounts_are_not():
    rng = np.random.default_rng(0)
    ages = rng.normal(50, 15, 200)
    for code in (99999, 999, -999, 1e30):
        assert far_off(np.r_[ages, code]).nonzero()[0].tolist() == [200]
    assert far_off(np.r_[rng.lognormal(0, 1, 500), 99999.0, -999.0]).nonzero()[0].tolist() == [500, 501]
    mostly_none = rng.lognormal(0, 1.5, 2000) * (rng.random(2000) < 0.2)
    for amounts in (rng.normal(size=2000), rng.lognormal(0, 2.5, 2000), mostly_none, np.ones(20)):
        assert not far_off(amounts).any()


def test_copies_of_numbers_are_monotonic_in_them_and_those_of_classes_have_a_value_for_each():
    rng = np.random.default_rng(0)
    age = rng.normal(50, 10, 300)
    features = [age, 365.25 * age + 3, -np.log(age.clip(1)), age + rng.normal(0, 0.01, 300), age > 50, np.ones(300)]
    assert copies_of(read_target(age, "age"), np.stack(features, axis=1)).tolist() == [0, 1, 2]
    site = np.arange(60) % 3
    target = read_target(np.array(["a", "b", "c"])[site], "site")
    codes = [np.array(values)[site] for values in ([2.0, 7.0, -1.0], [1.0, 0.0, 1.0])]
    assert copies_of(target, np.stack([*codes, rng.random(60)], axis=1)).tolist() == [0]


@pytest.fixture
def features():
    return np.random.default_rng(1).normal(size=(300, 4))


@pytest.mark.parametrize("probe", ["linear", "knn", "boosting"])
def test_each_probe_predicts_classes_and_numbers(features, probe):
    seen, unseen = features[:200], features[200:]
    classes = np.digitize(features[:, 0], [-0.5, 0.5])
    fitted = ProbeModel(probe).fit(seen, classes[:200], np.arange(200), 3)
    p = fitted.predict(unseen)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    assert (p.argmax(axis=1) == classes[200:]).mean() > 0.7
    number = ProbeModel(probe).fit(seen, seen[:, 0] * 5, np.arange(200), None)
    assert np.corrcoef(number.predict(unseen), features[200:, 0])[0, 1] > 0.8
    assert (number.regularisation is None) == (probe == "boosting")


def test_noise_gets_the_strongest_regularisation_and_a_signal_a_weak_one_whatever_its_scale(features):
    noise = np.random.default_rng(2).integers(2, size=300)
    assert ProbeModel("linear").fit(features, noise, np.arange(300), 2).regularisation <= probes.LOGISTIC_CS[1]
    assert ProbeModel("linear").fit(features, (features[:, 0] > 0).astype(int), np.arange(300), 2).regularisation >= 10
    number = ProbeModel("linear").fit(features, features[:, 0], np.arange(300), None)
    assert number.regularisation == probes.RIDGE_ALPHAS[0]
    assert ProbeModel("knn").fit(features, noise, np.arange(300), 2).regularisation == 100
    scaled, target = features * np.logspace(-4, 4, 4), (features[:, 1] > 0.3).astype(int)
    for probe in ("linear", "knn"):
        first, second = (ProbeModel(probe).fit(x, target, np.arange(300), 2).predict(x) for x in (features, scaled))
        np.testing.assert_allclose(first, second, atol=1e-4)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("copies", [1, 2])  # cases that are there twice span half as many dimensions
@pytest.mark.parametrize("num_classes", [2, 3])
def test_with_more_features_than_cases_a_linear_probe_is_scikit_learns(copies, num_classes):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 500)) * np.logspace(0, -2, 500)
    y = np.digitize(x @ rng.normal(size=500) * 2, [0] if num_classes == 2 else [-1, 1])
    seen, target = np.repeat(x[:40], copies, axis=0), np.repeat(y[:40], copies)
    for standardise in (True, False):
        for fitted in ProbeModel(standardise=standardise).fit_path(seen, target, num_classes, [1e-3, 1, 30]):
            exact = LogisticRegression(C=fitted.regularisation, tol=1e-9, max_iter=10_000)
            expected = make_pipeline(StandardScaler(with_std=standardise), exact).fit(seen, target)
            np.testing.assert_allclose(fitted.predict(x), expected.predict_proba(x), atol=1e-4)
            assert fitted.model[-1].coef_.shape == exact.coef_.shape
            model = ProbeModel(standardise=standardise, regularisation=fitted.regularisation)
            fixed = model.fit(seen, target, np.arange(len(seen)), num_classes)
            np.testing.assert_allclose(fixed.predict(x), fitted.predict(x), atol=1e-4)  # which started elsewhere
            assert fixed.regularisation == fitted.regularisation


@pytest.mark.filterwarnings("error")
def test_a_linear_probe_of_components_with_very_different_scales_is_at_its_optimum():
    """The gradient of the regularised loss is 0 there; solvers of first order stop far before."""
    rng = np.random.default_rng(0)
    scales = np.logspace(0, -4, 60)
    features = rng.normal(size=(600, 60)) * scales
    target = (features / scales @ rng.normal(size=60) + rng.normal(size=600) > 0).astype(int)
    fitted = ProbeModel("linear", standardise=False).fit(features, target, np.arange(600), 2)
    centred, model = features - features.mean(axis=0), fitted.model[-1]
    residuals = fitted.predict(features)[:, 1] - target
    gradient = model.C * residuals @ centred + model.coef_[0]
    assert np.abs(gradient).max() < 1e-3 * np.abs(model.coef_).max()


def test_the_regularisation_is_chosen_across_patients():
    # each patient has a signature and a class of their own: memorised, it predicts that of the patient's other cases
    generator = np.random.default_rng(3)
    x = np.repeat(generator.normal(size=(40, 60)), 5, axis=0) + 0.01 * generator.normal(size=(200, 60))
    target, patients = np.repeat(generator.permutation(40) % 2, 5), np.repeat(np.arange(40), 5)
    assert ProbeModel("linear").fit(x, target, np.arange(200), 2).regularisation >= 1
    assert ProbeModel("linear").fit(x, target, patients, 2).regularisation <= 0.01


def test_probabilities_are_calibrated_and_a_rare_class_is_predicted_all_the_same(features):
    noisy = features[:, 0] + np.random.default_rng(4).normal(size=300)
    rare = (noisy > 2).astype(int)
    fitted = ProbeModel("linear").fit(features, rare, np.arange(300), 2)
    p = fitted.predict(features)
    assert p[:, 1].mean() == pytest.approx(rare.mean(), abs=0.01)
    classified = fitted.classify(p)
    np.testing.assert_array_equal(classified, p[:, 1] > rare.mean())
    assert classified[rare == 1].mean() > 0.6 > p.argmax(axis=1)[rare == 1].mean()


@pytest.mark.parametrize("num_classes", [None, 2])
def test_folds_divide_patients_and_do_not_depend_on_names_in_the_target(num_classes):
    generator = np.random.default_rng(4)
    patients = generator.integers(30, size=100).astype(str)
    target = generator.integers(2, size=100)
    folds = probes.grouped_folds(target, patients, num_classes)
    assert len(folds) == 5
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(100))
    for train, test in folds:
        assert not set(patients[train]) & set(patients[test])
    others = probes.grouped_folds(target, patients, num_classes, seed=1)
    assert any(a.tolist() != b.tolist() for (_, a), (_, b) in zip(folds, others, strict=True))


def test_pca_of_few_images_is_exact_and_fitted_to_training_images_alone():
    images = np.random.default_rng(6).normal(size=(100, 1, 30, 30)) * np.logspace(0, -1, 30)
    components, other = probes.pca_features(images, images[:1], 75)
    centred = images.reshape(100, -1) - images.reshape(100, -1).mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    expected = np.abs(u * s)[:, :75]
    np.testing.assert_allclose(np.abs(components), expected / np.sqrt((expected**2).sum() / 99 / 75), atol=1e-8)
    np.testing.assert_allclose(other, components[:1], atol=1e-6)
    np.testing.assert_array_equal(probes.pca_features(images, images[:1] * 100, 75)[0], components)
    assert probes.pca_features(images[:20], images[20:], 500)[0].shape == (20, 19)  # what 20 images span


def test_pca_is_no_strawman_if_there_are_hardly_more_images_than_dimensions():
    """The last components, which are noise or nothing, must not drown the first."""
    num_train, rng = 40, np.random.default_rng(7)
    target = rng.integers(2, size=200)
    images = rng.normal(size=(200, 20, 20)) + 3 * (2 * target - 1)[:, None, None] * rng.normal(size=(20, 20)) / 10
    train, test = probes.pca_features(images[:num_train], images[num_train:], 40)
    for probe in ("linear", "knn"):
        fitted = ProbeModel(probe, standardise=False).fit(train, target[:num_train], np.arange(num_train), 2)
        right = fitted.predict(test).argmax(axis=1) == target[num_train:]
        assert right.mean() > 0.9


def predictions(seed, num_classes, num=80):
    generator = np.random.default_rng(seed)
    truth = np.r_[np.arange(num_classes), generator.integers(num_classes, size=num - num_classes)]
    raw = generator.integers(1, 6, size=(num, num_classes)) + 2.0 * np.eye(num_classes)[truth]  # with many ties
    return truth, raw / raw.sum(axis=1, keepdims=True), generator


@settings(deadline=None, max_examples=15)
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


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 10**6))
def test_scores_of_numbers_are_sklearns(seed):
    generator = np.random.default_rng(seed)
    truth, weights = generator.normal(size=50), generator.integers(4, size=50) + 0.1
    predicted = truth + generator.normal(size=50)
    r2, mae = NumberScores(truth, predicted)(weights)
    assert r2 == pytest.approx(metrics.r2_score(truth, predicted, sample_weight=weights))
    assert mae == pytest.approx(metrics.mean_absolute_error(truth, predicted, sample_weight=weights))


def test_scores_of_a_predicted_class_that_is_not_the_most_probable():
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


def test_perfect_scores_have_an_interval_that_shrinks_with_the_patients_of_the_rarest_class():
    lows = []
    for num in (6, 40, 400):
        truth = np.r_[np.zeros(2 * num, int), np.ones(num, int)]
        scores = ClassScores(truth, np.stack([1 - truth, truth], axis=1))
        intervals = scores.intervals(bootstrapped(scores, np.arange(3 * num)), np.arange(3 * num))
        assert intervals[0] == intervals[1] == intervals[2]
        assert intervals[0][1] == 1
        assert intervals[3][0] == 0 < intervals[3][1]
        lows.append(intervals[0][0])
    alone = np.r_[np.arange(800), [-1] * 400]  # the rarest class has one patient
    assert scores.intervals(bootstrapped(scores, alone), alone)[0] == (0, 1)
    assert lows == pytest.approx([0.61, 0.954, 0.9955], abs=0.005)
    assert difference_interval(0.0, np.zeros(1000), 400) == pytest.approx((-0.00123, 0.00123), abs=1e-4)


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


RNG = np.random.default_rng(0)
Z = RNG.normal(size=(300, 6)) * [1, 1, 1, 1, 1, 0.01]
NOISE = RNG.normal(size=300)
PATIENTS = np.arange(300) // 2
IS_TRAIN = np.arange(300) < 200
LABELS = {
    "number": list(Z[:, 0] + 0.5 * NOISE),
    "two": [("ill" if value else "well") for value in Z[:, 0] + 0.5 * NOISE > 0],
    "three": [str(value) for value in np.clip(np.round(Z[:, 0] + 0.5 * NOISE), -1, 1)],
}


def choose(labels, patients=PATIENTS):
    return QuickProbe.choose(labels, "a", patients, IS_TRAIN)


@pytest.mark.parametrize("kind", LABELS)
def test_a_label_that_z_sem_holds_is_predicted_and_a_shuffled_one_is_not(kind):
    scores = choose(LABELS[kind]).scores(Z)
    shuffled = choose(list(np.random.default_rng(1).permutation(np.array(LABELS[kind], object)))).scores(Z)
    chance = {"number": (0, 0), "two": (0.5, 1 / 2), "three": (0.5, 1 / 3)}[kind]
    assert scores.low < scores.score < scores.high
    assert scores.score > 0.6 > shuffled.score
    assert shuffled.score == pytest.approx(chance[0], abs=0.25)
    assert shuffled.neighbors == pytest.approx(chance[1], abs=0.25)
    assert scores.neighbors > shuffled.neighbors + 0.1


def test_quick_scores_are_the_same_whatever_was_drawn_before_and_chance_is_half():
    first = choose(LABELS["two"]).scores(Z)
    np.random.seed(5)
    assert choose(LABELS["two"]).scores(Z) == first
    rare = list(np.random.default_rng(2).permutation(["rare"] * 45 + ["frequent"] * 255))
    assert choose(rare).scores(Z).neighbors == pytest.approx(0.5, abs=0.1)
    constant = choose(LABELS["number"]).scores(np.ones((300, 4)))
    assert constant.score == pytest.approx(0, abs=0.05)
    assert constant.neighbors == 0
