"""Probes: how well z_sem and other features predict labels of held-out patients."""

from monai_diffae.latents.probing.evaluation import EvaluatedProbe, evaluate_probes
from monai_diffae.latents.probing.nested import HeldOutPredictions, ProbeSettings, QuickScores
from monai_diffae.latents.probing.probes import FeatureSet, FittedProbe, ProbeModel, intensity_statistics, pca_features
from monai_diffae.latents.probing.scores import ClassScores, NumberScores, score_with_interval
from monai_diffae.latents.targets import Target, read_target

__all__ = [
    "ClassScores",
    "EvaluatedProbe",
    "FeatureSet",
    "FittedProbe",
    "HeldOutPredictions",
    "NumberScores",
    "ProbeModel",
    "ProbeSettings",
    "QuickScores",
    "Target",
    "evaluate_probes",
    "intensity_statistics",
    "pca_features",
    "read_target",
    "score_with_interval",
]
