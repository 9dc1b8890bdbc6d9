"""Printed scores, intervals and p-values on synthetic z_sem, where the truth is known.

``error`` is the Monte Carlo standard error of a mean or share over the runs of a test. Larger runs of the same
simulations are in the messages of the commits that changed an estimator.
"""

import shutil

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.special import expit, logit, ndtri
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression

from monai_diffae import fit_direction, neighbors, predict, probe
from monai_diffae.apps.evaluation.quality_tables import difference_rows
from monai_diffae.latents import fit_direction as fit
from monai_diffae.latents.probing.nested import QuickProbe
from monai_diffae.latents.probing.scores import ClassScores, bootstrapped, difference_interval

pytestmark = pytest.mark.slow

DIMS, SHARE_OF_PATIENT = 32, 0.7


def z_sem(generator, num_patients, scans=1):
    """Codes whose standard deviations fall like 1 / sqrt(k); scans of a patient are alike."""
    own, scan = generator.normal(size=(num_patients, 1, DIMS)), generator.normal(size=(num_patients, scans, DIMS))
    z = np.sqrt(SHARE_OF_PATIENT) * own + np.sqrt(1 - SHARE_OF_PATIENT) * scan
    return (z / np.sqrt(np.arange(1, DIMS + 1))).reshape(-1, DIMS)


def balanced(generator, num):
    return generator.permutation(np.arange(num) % 2)


def mean_and_error(values):
    return np.mean(values), np.std(values) / len(values) ** 0.5


def assert_share(is_true, expected):
    """At least the expected share: fewer would occur in one of 740 simulations, as beyond three standard errors."""
    assert binomtest(int(np.sum(is_true)), len(is_true), expected, "less").pvalue > 0.00135


@pytest.mark.parametrize(("num", "tables", "labels"), [(20, 10, 12), (60, 6, 8), (300, 3, 4)])
def test_labels_of_noise_get_chance_from_probe_fit_direction_and_predict(num, tables, labels, labelled, tmp_path):
    generator, scores = np.random.default_rng(num), {"linear": [], "knn": [], "direction": [], "predict": []}
    path, direction = tmp_path / "embeddings.parquet", tmp_path / "direction.json"
    shutil.copy(labelled.embeddings.with_suffix(".json"), path.with_suffix(".json"))
    names = [f"label_{k}" for k in range(labels)]
    for _ in range(tables):
        codes = pd.DataFrame(z_sem(generator, 2 * num), columns=[f"z_{k:03d}" for k in range(DIMS)], dtype=np.float32)
        made = {name: np.r_[balanced(generator, num), balanced(generator, num)] for name in names}
        table = pd.concat([codes, pd.DataFrame(made)], axis=1).assign(
            id=[f"c{i}" for i in range(2 * num)], split=np.repeat(["train", "test"], num)
        )
        table.to_parquet(path)
        for row in probe(path, targets=names, evaluation="cv", splits=["train"]).rows:
            scores[row["probe"]].append((row["score"], row["low"], row["high"]))
        for name in names[: labels // 2]:
            fitted = fit_direction(path, direction, target=name, overwrite=True).direction
            options = {"labelled": direction, "overwrite": True}
            measured = predict(labelled.bundle, path, tmp_path / "out", **options).measured[name]
            scores["direction"].append((fitted.score, fitted.low, fitted.high))
            scores["predict"].append(tuple(measured[key] for key in ("score", "low", "high")))
    for values in scores.values():
        score, low, high = np.transpose(values)
        mean, error = mean_and_error(score)
        assert abs(mean - 0.5) < 0.02 + 2 * error
        assert_share((low <= 0.5) & (high >= 0.5), 0.95)
    assert_share([low <= 0.5 for _, low, _ in scores["direction"]], 0.975)  # start takes no such label


@pytest.mark.parametrize("num", [20, 60, 200])
@pytest.mark.parametrize("auroc", [0.7, 0.93, 0.99])
def test_intervals_of_a_fixed_prediction_hold_its_true_scores(auroc, num):
    generator = np.random.default_rng(num)

    def predicted(ill, separation):
        noise = np.sqrt(SHARE_OF_PATIENT) * generator.normal(size=(len(ill), 1))
        noise = noise + np.sqrt(1 - SHARE_OF_PATIENT) * generator.normal(size=(len(ill), 3))  # three scans
        p = expit(separation * (ill[:, None] - 0.5) + noise).ravel()
        return ClassScores(np.repeat(ill, 3), np.stack([1 - p, p], axis=1))

    separations = [np.sqrt(2) * ndtri(area) for area in (auroc, auroc - 0.06)]
    many = (np.arange(40_000) < 14_000).astype(int)
    truth = np.stack([predicted(many, separation)(np.ones(120_000)) for separation in separations])
    ill, patients = (np.arange(num) < 0.35 * num).astype(int), np.repeat(np.arange(num), 3)
    holds = []
    for _ in range(80):
        both = [predicted(ill, separation) for separation in separations]
        draws = [bootstrapped(scores, patients, num_draws=300) for scores in both]
        low, high = np.transpose(both[0].intervals(draws[0], patients))
        assert (low < high).all()
        areas = [scores(np.ones(3 * num))[0] for scores in both]
        ends = difference_interval(areas[0] - areas[1], draws[0][:, 0] - draws[1][:, 0], int(ill.sum()))
        difference = truth[0, 0] - truth[1, 0]
        holds.append([*((low <= truth[0]) & (truth[0] <= high)), ends[0] <= difference <= ends[1]])
    *columns, differences = np.transpose(holds)
    for column in columns:
        assert_share(column, 0.95)
    assert_share(differences, 0.91)  # less than .95 where both AUROCs are near 1


@pytest.mark.parametrize("classes", [2, 3])
def test_intervals_of_probes_during_training_hold_the_score_of_the_same_probe_on_many_cases(classes):
    generator, holds = np.random.default_rng(classes), []
    for _ in range(60):
        z = z_sem(generator, 1100)
        strength = z[:, 0] + 0.8 * z[:, 1] * np.sqrt(2) + generator.normal(size=1100)
        labels = [
            f"class {k}" for k in np.searchsorted(np.quantile(strength, np.arange(1, classes) / classes), strength)
        ]
        is_train, is_few = np.arange(1100) < 60, np.arange(1100) < 100  # 40 held-out patients
        few = QuickProbe.choose(labels[:100], "stage", np.arange(100), is_train[:100]).scores(z[is_few])
        many = QuickProbe.choose(labels, "stage", np.arange(1100), is_train)
        truth = ClassScores(many.target.values[many.test], many._predicted(z, 0))(np.ones(1040))[0]
        holds.append(few.low <= truth <= few.high)
    assert_share(holds, 0.95)


@pytest.mark.parametrize("num", [300, 1000])
def test_predictions_of_a_rare_class_are_calibrated_as_if_classes_were_equally_frequent(num):
    generator, intercepts = np.random.default_rng(num), []
    for _ in range(12):
        z, unseen = z_sem(generator, num), z_sem(generator, 6000)
        ill, truth = ((generator.random(len(x)) < expit(3 * x[:, 0] - 3.4)).astype(int) for x in (z, unseen))  # 10 %
        direction = fit(z, ill, target="ill", model="a" * 64)
        outputs = logit(direction.predict(unseen))[:, None]
        intercepts.append(LogisticRegression(C=1e6, class_weight="balanced").fit(outputs, truth).intercept_[0])
    mean, error = mean_and_error(intercepts)
    assert abs(mean) < 0.1 + 2 * error


LEVELS = np.array([0.05, 0.1, 0.2])


def assert_uniform(p, num_reference=10_000):
    """Check P(p <= .05, .1, .2) over runs [R, N], to 3 standard errors and .01; p are multiples of 1 / (n + 1).

    It may be a quarter too low: with 10 cases, p-values are a little too large.
    """
    below = (np.asarray(p)[..., None] <= LEVELS).mean(axis=1)
    error = below.std(axis=0, ddof=1) / np.sqrt(len(below))
    expected = np.floor(LEVELS * (num_reference + 1)) / (num_reference + 1)
    assert (below.mean(axis=0) <= expected + 3 * error + 0.01).all(), (below.mean(axis=0), error)
    assert (below.mean(axis=0) >= 0.75 * expected - 3 * error).all(), (below.mean(axis=0), error)


@pytest.mark.parametrize(("patients", "scans", "runs"), [(10, 1, 100), (30, 1, 60), (100, 1, 30), (30, 3, 40)])
def test_outlier_p_values_of_cases_like_the_training_cases_are_uniform(patients, scans, runs, tmp_path):
    """Standard errors: .005 to .015. When training cases shrank their own distances, P(p <= .1) was .35 for n = 10."""
    p = {"p_distance": [], "p_whitened": []}
    columns = {"patient": np.r_[np.repeat(range(patients), scans), 1000:1060]}
    columns["split"] = np.where(columns["patient"] < 1000, "train", "test")
    for seed in range(runs):
        generator = np.random.default_rng(seed)
        z = np.concatenate([z_sem(generator, patients, scans), z_sem(generator, 60)])
        table = pd.DataFrame({"id": [f"c{i:03d}" for i in range(len(z))], **columns})
        table = table.join(pd.DataFrame(z, columns=[f"z_{i:03d}" for i in range(z.shape[1])]))
        table.to_csv(tmp_path / f"{seed}.csv", index=False)
        neighbors(tmp_path / f"{seed}.csv", tmp_path / f"{seed}", split="test")
        outliers = pd.read_csv(tmp_path / f"{seed}" / "outliers.csv")
        for name, values in p.items():
            values.append(outliers[name].to_numpy())
    for values in p.values():
        assert_uniform(values, patients * scans)


@pytest.mark.parametrize(("patients", "scans"), [(3, 1), (10, 1), (30, 1), (100, 1), (10, 3)])
def test_one_of_twenty_differences_between_equal_models_has_an_interval_without_0(patients, scans):
    """The p-values of the intervals of evaluate and compare. Standard errors of 200 runs: .015 at .05, .03 at .2.

    A percentile bootstrap excluded the truth in 25 % (3 patients), 8 to 10 % (10) and 7 % (30).
    """
    p, owners = [], {f"c{i}": f"p{i // scans}" for i in range(patients * scans)}
    for seed in range(200):
        error, difference = (z_sem(np.random.default_rng([seed, i]), patients, scans)[:, 0] for i in range(2))
        rows = [
            {"table": "reconstruction", "bundle": bundle, "id": name, "mse": value}
            for bundle, values in (("a", error), ("b", error + difference))
            for name, value in zip(owners, values, strict=True)
        ]
        (row,) = difference_rows(rows, "a", owners)
        t = row["value"] / (row["high"] - row["value"]) * stats.t.ppf(0.975, patients - 1)
        p.append([2 * stats.t.sf(abs(t), patients - 1)])
    assert_uniform(p)
