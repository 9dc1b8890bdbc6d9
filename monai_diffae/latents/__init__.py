"""What can be done with z_sem: statistics, directions, components, probes, two-sample tests. Arrays only."""

from monai_diffae.latents.components import PrincipalComponents, principal_components
from monai_diffae.latents.direction_fit import fit_direction
from monai_diffae.latents.directions import Direction
from monai_diffae.latents.probing.nested import (
    HeldOutPredictions,
    cross_validation_folds,
    few_label_scores,
    predict_held_out,
    split_folds,
)
from monai_diffae.latents.probing.probes import FittedProbe, fit_probe, pca_features
from monai_diffae.latents.probing.scores import score_with_interval
from monai_diffae.latents.probing.targets import ProbeTarget, read_probe_target
from monai_diffae.latents.statistics import LatentStatistics
from monai_diffae.latents.two_samples import (
    DifferenceInterval,
    PermutationTest,
    copying_ratio,
    difference_interval,
    energy_distance,
    mmd,
    nearest_distances,
    permutation_test,
)

__all__ = [
    "DifferenceInterval",
    "Direction",
    "FittedProbe",
    "HeldOutPredictions",
    "LatentStatistics",
    "PermutationTest",
    "PrincipalComponents",
    "ProbeTarget",
    "copying_ratio",
    "cross_validation_folds",
    "difference_interval",
    "energy_distance",
    "few_label_scores",
    "fit_direction",
    "fit_probe",
    "mmd",
    "nearest_distances",
    "pca_features",
    "permutation_test",
    "predict_held_out",
    "principal_components",
    "read_probe_target",
    "score_with_interval",
    "split_folds",
]
