import numpy as np
import pytest

from monai_diffae.errors import ConfigError
from monai_diffae.latents.probing.probes import LOGISTIC_CS, RIDGE_ALPHAS, fit_probe, grouped_folds, pca_features


@pytest.fixture
def features():
    return np.random.default_rng(1).normal(size=(300, 4))


@pytest.mark.parametrize("probe", ["linear", "knn", "boosting"])
def test_each_probe_predicts_classes_and_numbers(features, probe):
    seen, unseen = features[:200], features[200:]
    classes = np.digitize(features[:, 0], [-0.5, 0.5])
    fitted = fit_probe(probe, seen, classes[:200], np.arange(200), 3)
    p = fitted.predict(unseen)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    assert (p.argmax(axis=1) == classes[200:]).mean() > 0.7
    number = fit_probe(probe, seen, seen[:, 0] * 5, np.arange(200), None)
    assert np.corrcoef(number.predict(unseen), features[200:, 0])[0, 1] > 0.8
    assert (number.regularisation is None) == (probe == "boosting")


def test_noise_gets_the_strongest_regularisation_and_a_signal_a_weak_one(features):
    noise = np.random.default_rng(2).integers(2, size=300)
    assert fit_probe("linear", features, noise, np.arange(300), 2).regularisation <= LOGISTIC_CS[1]
    assert fit_probe("linear", features, (features[:, 0] > 0).astype(int), np.arange(300), 2).regularisation >= 10
    assert fit_probe("linear", features, features[:, 0], np.arange(300), None).regularisation == RIDGE_ALPHAS[0]
    assert fit_probe("knn", features, noise, np.arange(300), 2).regularisation == 100


def test_the_scale_of_features_does_not_matter(features):
    scaled, target = features * np.logspace(-4, 4, 4), (features[:, 1] > 0.3).astype(int)
    for probe in ("linear", "knn"):
        first, second = (fit_probe(probe, x, target, np.arange(300), 2).predict(x) for x in (features, scaled))
        np.testing.assert_allclose(first, second, atol=1e-4)


@pytest.mark.filterwarnings("error")
def test_a_linear_probe_of_components_with_very_different_scales_is_at_its_optimum():
    """The gradient of the regularised loss is 0 there; solvers of first order stop far before."""
    rng = np.random.default_rng(0)
    scales = np.logspace(0, -4, 60)
    features = rng.normal(size=(600, 60)) * scales
    target = (features / scales @ rng.normal(size=60) + rng.normal(size=600) > 0).astype(int)
    fitted = fit_probe("linear", features, target, np.arange(600), 2, standardise=False)
    centred, model = features - features.mean(axis=0), fitted.model[-1]
    residuals = fitted.predict(features)[:, 1] - target
    gradient = model.C * residuals @ centred + model.coef_[0]
    assert np.abs(gradient).max() < 1e-3 * np.abs(model.coef_).max()


@pytest.mark.filterwarnings("error")
def test_float32_features_give_the_same_probe_as_float64_ones():
    rng = np.random.default_rng(3)
    x = (rng.normal(size=(400, 20)) @ rng.normal(size=(20, 60))).astype(np.float32)  # 60 features of rank 20
    target = (x[:, 0] > 0).astype(int)
    single, double = (fit_probe("linear", values, target, np.arange(400), 2) for values in (x, x.astype(np.float64)))
    assert np.array_equal(single.model[-1].coef_, double.model[-1].coef_)


def test_the_regularisation_is_chosen_across_patients():
    # each patient has a signature and a class of their own: memorised, it predicts that of the patient's other cases
    generator = np.random.default_rng(3)
    x = np.repeat(generator.normal(size=(40, 60)), 5, axis=0) + 0.01 * generator.normal(size=(200, 60))
    target, patients = np.repeat(generator.permutation(40) % 2, 5), np.repeat(np.arange(40), 5)
    assert fit_probe("linear", x, target, np.arange(200), 2).regularisation >= 1
    assert fit_probe("linear", x, target, patients, 2).regularisation <= 0.01


def test_probabilities_are_calibrated_and_a_rare_class_is_predicted_all_the_same(features):
    noisy = features[:, 0] + np.random.default_rng(4).normal(size=300)
    rare = (noisy > 2).astype(int)
    fitted = fit_probe("linear", features, rare, np.arange(300), 2)
    p = fitted.predict(features)
    assert p[:, 1].mean() == pytest.approx(rare.mean(), abs=0.01)
    classified = fitted.classify(p)
    np.testing.assert_array_equal(classified, p[:, 1] > rare.mean())
    assert classified[rare == 1].mean() > 0.6 > p.argmax(axis=1)[rare == 1].mean()


def test_a_class_without_training_cases_has_probability_0(features):
    fitted = fit_probe("linear", features, np.where(features[:, 0] > 0, 2, 0), np.arange(300), 3)
    p = fitted.predict(features)
    assert p.shape == (300, 3)
    assert not p[:, 1].any()
    assert set(fitted.classify(p)) == {0, 2}


@pytest.mark.parametrize("num_classes", [None, 2])
def test_folds_divide_patients_and_do_not_depend_on_names_in_the_target(num_classes):
    generator = np.random.default_rng(4)
    patients = generator.integers(30, size=100).astype(str)
    target = generator.integers(2, size=100)
    folds = grouped_folds(target, patients, num_classes)
    assert len(folds) == 5
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(100))
    for train, test in folds:
        assert not set(patients[train]) & set(patients[test])
    others = grouped_folds(target, patients, num_classes, seed=1)
    assert any(a.tolist() != b.tolist() for (_, a), (_, b) in zip(folds, others, strict=True))


def test_there_are_no_more_folds_than_the_smallest_class_has_patients():
    target, patients = np.r_[np.zeros(40, int), np.ones(6, int)], np.r_[np.arange(40), [50, 50, 51, 51, 52, 52]]
    assert len(grouped_folds(target, patients, 2)) == 3
    assert grouped_folds(target, np.r_[np.arange(40), [50] * 6], 2) == []


def test_if_nothing_can_be_chosen_the_strongest_regularisation_is_used(features):
    x, patient = features[:40], np.zeros(40)
    for target, num_classes in ((np.arange(40) % 4 == 0).astype(int), 2), (x[:, 0], None):
        knn, linear = (fit_probe(probe, x, target, patient, num_classes) for probe in ("knn", "linear"))
        assert (knn.regularisation, linear.regularisation) == (None, None)
        np.testing.assert_allclose(knn.predict(x), np.broadcast_to(knn.predict(x[:1]), knn.predict(x).shape))
        np.testing.assert_allclose(linear.predict(x), np.broadcast_to(linear.predict(x[:1]), linear.predict(x).shape),
                                   atol=0.01)  # fmt: skip


def test_training_cases_of_one_class_are_refused(features):
    with pytest.raises(ConfigError, match="all of one class"):
        fit_probe("linear", features, np.zeros(300, int), np.arange(300), 2)


def test_pca_is_fitted_to_training_images_alone():
    images = np.random.default_rng(5).normal(size=(30, 1, 5, 5))
    train, _ = pca_features(images[:20], images[20:], 4)
    other, _ = pca_features(images[:20], images[20:] * 100, 4)
    np.testing.assert_array_equal(train, other)
    assert pca_features(images[:20], images[20:], 500)[0].shape == (20, 19)  # what 20 images span


def test_pca_of_few_images_is_exact():
    images = np.random.default_rng(6).normal(size=(100, 1, 30, 30)) * np.logspace(0, -1, 30)
    components, _ = pca_features(images, images[:1], 75)
    centred = images.reshape(100, -1) - images.reshape(100, -1).mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    expected = np.abs(u * s)[:, :75]
    np.testing.assert_allclose(np.abs(components), expected / np.sqrt((expected**2).sum() / 99 / 75), atol=1e-8)


@pytest.mark.parametrize("num_train", [40, 100])
def test_pca_is_no_strawman_if_there_are_hardly_more_images_than_dimensions(num_train):
    """The last components, which are noise or nothing, must not drown the first."""
    rng = np.random.default_rng(7)
    target = rng.integers(2, size=200)
    images = rng.normal(size=(200, 20, 20)) + 3 * (2 * target - 1)[:, None, None] * rng.normal(size=(20, 20)) / 10
    train, test = pca_features(images[:num_train], images[num_train:], 40)
    for probe in ("linear", "knn"):
        fitted = fit_probe(probe, train, target[:num_train], np.arange(num_train), 2, standardise=False)
        right = fitted.predict(test).argmax(axis=1) == target[num_train:]
        assert right.mean() > 0.9
