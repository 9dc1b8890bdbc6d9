"""Probes: how well z_sem and other features predict labels of held-out patients."""

from monai_diffae.latents.probing.evaluation import EvaluatedProbe, ProbeSettings, evaluate_probes
from monai_diffae.latents.probing.features import FeatureSet, intensity_statistics
from monai_diffae.latents.probing.folds import ProbedCases, TargetFolds, choose_folds
from monai_diffae.latents.probing.held_out import QuickProbe, QuickScores
from monai_diffae.latents.probing.nested import (
    HeldOutPredictions,
    cross_validation_folds,
    few_label_scores,
    predict_held_out,
    split_folds,
)
from monai_diffae.latents.probing.probes import FittedProbe, fit_probe, pca_features
from monai_diffae.latents.probing.scores import ClassScores, NumberScores, score_with_interval
from monai_diffae.latents.probing.targets import ProbeTarget, read_probe_target

__all__ = [
    "ClassScores",
    "EvaluatedProbe",
    "FeatureSet",
    "FittedProbe",
    "HeldOutPredictions",
    "NumberScores",
    "ProbeSettings",
    "ProbeTarget",
    "ProbedCases",
    "QuickProbe",
    "QuickScores",
    "TargetFolds",
    "choose_folds",
    "cross_validation_folds",
    "evaluate_probes",
    "few_label_scores",
    "fit_probe",
    "intensity_statistics",
    "pca_features",
    "predict_held_out",
    "read_probe_target",
    "score_with_interval",
    "split_folds",
]
