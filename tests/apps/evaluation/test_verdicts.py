"""Verdicts claim what the scores show, and no more."""

import numpy as np
import pandas as pd
import pytest

from monai_diffae.apps.evaluation.verdicts import find_verdicts, patients_needed
from monai_diffae.latents.probing import FeatureSet, ProbeSettings, evaluate_probes


def row(score, low, high, metric="auroc", features="z_sem", difference=None, patients=300, rarest=100, **more):
    between = (None, None) if difference is None else (difference - 0.05, difference + 0.05)
    return {
        "target": "sex", "features": features, "probe": "linear", "metric": metric, "score": score, "low": low,
        "high": high, "difference": difference, "difference_low": between[0], "difference_high": between[1],
        "num_patients": patients, "num_rarest": rarest, "num_folds": 5, **more,
    }  # fmt: skip


def left_out(score, low, high):
    return {"nuisance": "scanner", "left_out_score": score, "left_out_low": low, "left_out_high": high}


LEFT_OUT = left_out(0.6, 0.4, 0.7)
PCA, WIDE, WORDS = {"features": "PCA of pixels"}, {"features": "wide"}, {"features": "words"}


@pytest.mark.parametrize(
    ("rows", "answer", "words"),
    [
        ([row(0.9, 0.85, 0.94)], "predicts", "z_sem predicts sex: AUROC 0.90 (0.85 to 0.94), 300 patients."),
        ([row(0.9, 0.8, 1, num_seen_by_autoencoder=8, num_test=9, patients=7, knows_patients=False)], "predicts",
         "9 cases of unknown patients, 7 without twins and second scans (the encoder may have seen 8 of the 9 cases)."),
        ([row(0.9, 0.85, 0.94), row(0.8, 0.7, 0.9, difference=0.1, **PCA)], "better", "so z_sem is better"),
        ([row(0.8, 0.7, 0.9), row(0.8, 0.7, 0.9, difference=0.01, **PCA)], "like", "no clear difference"),
        ([row(0.7, 0.6, 0.8), row(0.8, 0.7, 0.9, difference=-0.1, **PCA)], "worse", "0.90), which is better"),
        ([row(0.52, 0.47, 0.57)], "hardly", "z_sem hardly predicts sex, if at all: AUROC 0.52"),
        ([row(0.52, 0.47, 0.57), row(0.8, 0.7, 0.9, difference=-0.3, **PCA)], "hardly", "PCA of pixels predicts it"),
        ([row(0.4, 0.1, 0.8, patients=30), row(0.8, 0.6, 0.9, difference=-0.4, **PCA)], "hardly", "predicts it: AUROC"),
        # the sentence is about wide features only if neither z_sem nor the principal components predict the label
        ([row(0.9, 0.8, 0.95), row(0.8, 0.7, 0.9, difference=0.1, **PCA), row(0.99, 0.9, 1, difference=-0.06, **WIDE)],
         "better", "wide predicts it better: use it for classifiers (probe --features wide)."),
        ([row(0.9, 0.8, 0.95), row(0.8, 0.7, 0.9, difference=0.1, **PCA), row(0.96, 0.9, 1, difference=-0.06, **WIDE),
          row(0.99, 0.9, 1, difference=-0.09, **WORDS)], "better", "words predicts it better: use it for classifiers."),
        # features that are not trained
        ([row(0.7, 0.6, 0.8, **WORDS), row(0.8, 0.7, 0.9, difference=-0.1, **PCA)], "worse", "use PCA of pixels."),
        ([row(0.9, 0.8, 0.95), row(0.8, 0.7, 0.9, difference=0.1, **PCA), row(0.9, 0.8, 1, difference=-0.01, **WIDE)],
         "better", "z_sem predicts sex: AUROC 0.90"),
        ([row(0.52, 0.47, 0.57), row(0.5, 0.4, 0.6, difference=0, **PCA), row(0.8, 0.7, 0.9, difference=-0.3, **WIDE)],
         "hardly", "if at all: AUROC 0.52 (0.47 to 0.57), 300 patients. wide predicts it"),
        ([row(0.7, 0.4, 0.8, patients=30), row(0.8, 0.6, 0.9, difference=0.0, **PCA)], "unclear", "PCA of pixels"),
        ([row(0.6, 0.4, 0.8, patients=23, rarest=9)], "unclear", "AUROC 0.60 (0.40 to 0.80), 23 patients"),
        ([row(0.02, -0.05, 0.06, "r2", patients=23, rarest=None)], "unclear", "about 227 show R2 0.2"),
        ([row(0.6, 0.4, 0.8, patients=30, rarest=15, num_folds=1)], "unclear", "30 test patients"),
        ([row(0.3, 0.1, 0.5, "r2", rarest=None)], "predicts", "R2 0.30"),
        # of few patients, the permutation test says whether, and the interval how well
        ([row(0.94, 0.34, 1, patients=23, rarest=8, p=0.004)], "predicts", "AUROC 0.94 (0.34 to 1.00), p = 0.004, 23"),
        ([row(0.94, 0.44, 1, patients=8, rarest=3, p=0.2)], "unclear", "p = 0.2, 8 patients"),
        # the answer is about a scanner that was left out
        ([row(0.95, 0.9, 0.98, **left_out(0.47, 0.38, 0.56))], "hardly",
         "AUROC 0.47 (0.38 to 0.56) on a scanner that was left out, AUROC 0.95 (0.90 to 0.98) on known ones"),
        ([row(0.95, 0.9, 0.98, **left_out(0.8, 0.7, 0.9)), row(0.9, 0.8, 0.95, difference=0.1, **PCA, **LEFT_OUT)],
         "predicts", "z_sem predicts sex: AUROC 0.80 (0.70 to 0.90) on a scanner"),
        ([row(0.95, 0.9, 0.98, **left_out(None, None, None))], "unclear", "no AUROC on a scanner that was left out"),
        ([row(0.95, 0.9, 0.98, **left_out(None, None, None))], "unclear", "each class of sex from at least two values"),
        ([row(0.5, 0.47, 0.53, harmonized="scanner", association=0.9)], "unclear", "(0.90), so harmonizing removes"),
        ([row(0.7, 0.6, 0.8, harmonized="scanner", association=0.9), row(0.8, 0.7, 0.9, difference=-0.1, **PCA),
          row(0.95, 0.9, 1, difference=-0.2, **WIDE)], "worse", "--nuisance scanner; to predict it, use wide"),
        ([row(0.5, 0.47, 0.53, harmonized="scanner", association=0.1)], "hardly", "hardly predicts sex"),
        ([row(None, None, None)], "unclear", "no AUROC"),
        # of five labels the best one may be chance; its own interval excludes it
        ([row(0.62, 0.51, 0.71), *(row(0.5, 0.4, 0.6, target=f"label {i}") for i in range(4))], "unclear", "by chance"),
    ],
)  # fmt: skip
def test_a_verdict_says_what_the_interval_and_the_baseline_show(rows, answer, words):
    verdict = find_verdicts(rows)[0]
    assert (verdict.answer, verdict.is_predicted) == (answer, answer not in ("hardly", "unclear"))
    assert words in " ".join(verdict.lines())
    assert ("Wide features" in verdict.advice) == ("Wide features" in words)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signal", "num_patients", "least", "most"), [(0.0, 40, 0, 2), (0.0, 120, 0, 2), (3.0, 120, 36, 40)]
)
def test_random_labels_are_hardly_ever_claimed_and_those_of_z_sem_nearly_always(signal, num_patients, least, most):
    claims = 0
    for seed in range(40):
        random = np.random.default_rng(seed)
        z = random.normal(size=(num_patients, 32)) / np.sqrt(1 + np.arange(32))
        names = [f"case {i}" for i in range(num_patients)]
        sick = (signal * z[:, 0] + random.normal(size=num_patients) > 0).astype(int)
        table = pd.DataFrame({"id": names, "patient": names, "sick": sick})
        features = [FeatureSet.from_values("z_sem", z)]
        settings = ProbeSettings(evaluation="cv", probes=("linear",))
        probes, _ = evaluate_probes(table, ["sick"], features, settings)
        claims += find_verdicts([probe.row for probe in probes])[0].is_predicted
    assert least <= claims <= most


def test_more_patients_are_needed_if_a_class_is_rare_or_in_cross_validation():
    assert patients_needed("auroc") < patients_needed("auroc", num_folds=5) < patients_needed("auroc", 0.1, num_folds=5)
    assert patients_needed("auroc") < patients_needed("auroc", num_labels=5)
