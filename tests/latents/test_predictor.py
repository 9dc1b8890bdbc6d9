"""Predictors of labels: calibrated for new cases, of the best features, and one file of plain numbers."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from monai_diffae.apps.study.predict import read_predictors, write_predictors
from monai_diffae.errors import ConfigError
from monai_diffae.latents.predictor import fit_predictor
from monai_diffae.latents.targets import read_target

RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(10, 3))
X = RNG.normal(size=(4400, 10))
CLASS = np.array([RNG.choice(3, p=p) for p in softmax(X @ WEIGHT, axis=1)])
NUMBER = X[:, 0] + X[:, 1] + RNG.normal(size=len(X))
FITTED, NEW = slice(400), slice(400, None)
NOISE = np.random.default_rng(1).normal(size=(400, 10))


def predictor(labels, features=None, patients=None):
    target = read_target(list(labels), "state")
    return fit_predictor(features or {"z": X[FITTED]}, target, np.arange(400) if patients is None else patients)


@pytest.fixture(scope="module")
def of_classes():
    return predictor([f"c{value}" for value in CLASS[FITTED]])


@pytest.fixture(scope="module")
def of_numbers():
    return predictor(NUMBER[FITTED])


def test_a_probability_is_that_of_new_cases(of_classes):
    p = of_classes.predict(X[NEW])
    is_right = p.argmax(axis=1) == CLASS[NEW]
    for low in np.arange(0.4, 1, 0.1):
        chosen = (p.max(axis=1) >= low) & (p.max(axis=1) < low + 0.1)
        assert is_right[chosen].mean() == pytest.approx(p.max(axis=1)[chosen].mean(), abs=0.06)


def test_the_model_is_scikit_learns_on_all_labelled_cases(of_classes):
    """Its regularisation is one of those that a probe chooses from."""
    logits = np.log(of_classes.predict(X[NEW])) * of_classes.temperature
    models = (
        LogisticRegression(C=c, tol=1e-8, max_iter=5000).fit(X[FITTED], CLASS[FITTED]) for c in 10.0 ** np.arange(-4, 3)
    )
    differences = [np.abs(softmax(logits, axis=1) - model.predict_proba(X[NEW])).max() for model in models]
    assert min(differences) < 1e-4


def test_an_interval_holds_nine_of_ten_new_numbers(of_numbers):
    errors = np.abs(of_numbers.predict(X[NEW]) - NUMBER[NEW])
    assert (errors <= of_numbers.half_width).mean() == pytest.approx(0.9, abs=0.03)
    assert of_numbers.scores["coverage"] == pytest.approx(0.9, abs=0.03)


def test_the_features_that_predict_best_are_chosen():
    labels = CLASS[FITTED] == 1
    assert predictor(labels, {"z": NOISE, "wide": X[FITTED]}).features == "wide"
    chance = predictor(labels, {"z": NOISE, "wide": NOISE[::-1]})
    assert chance.scores["low"] < 0.5 < chance.scores["high"]


def test_scans_of_a_patient_are_never_on_both_sides():
    """Two scans with the same codes and a random label would be predicted perfectly otherwise."""
    z, labels = np.repeat(NOISE[:200], 2, axis=0), np.repeat(RNG.integers(2, size=200), 2)
    assert predictor(labels, {"z": z}, np.repeat(np.arange(200), 2)).scores["low"] < 0.5


def test_cases_of_another_kind_and_labelled_cases_are_told(of_classes):
    assert of_classes.is_unlike(X[NEW]).mean() < 0.03
    shares = []
    for z in np.random.default_rng(2).normal(size=(8, 530, 64)):  # with few cases, the mean and std fit them too well
        few = fit_predictor({"z": z[:30]}, read_target(list(z[:30, 0]), "age"), np.arange(30))
        shares.append(few.is_unlike(z[30:]).mean())
    assert np.mean(shares) < 0.06
    assert of_classes.is_unlike(X[NEW] * 4).mean() > 0.95
    assert of_classes.is_labelled(X).tolist() == [True] * 400 + [False] * 4000


def test_a_file_keeps_all(of_classes, of_numbers, tmp_path):
    file = tmp_path / "predictor.safetensors"
    made_by = {"model": "a" * 64, "preprocessing": None, "pool": "none", "wide": None}
    write_predictors(file, [of_classes, of_numbers], made_by)
    read, origin = read_predictors(file)
    for before, after in zip((of_classes, of_numbers), read, strict=True):
        assert (after.predict(X) == before.predict(X)).all()
        assert (after.p_values(X) == before.p_values(X)).all()
        assert after.scores == before.scores
    assert origin == made_by
    whole = file.read_bytes()
    for damaged in (whole[:-8], whole[:-8] + bytes(8)):
        file.write_bytes(damaged)
        with pytest.raises(ConfigError, match="^predictor.safetensors: is (no file of predictors|damaged)"):
            read_predictors(file)
