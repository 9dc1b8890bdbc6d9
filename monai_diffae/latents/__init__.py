"""What can be done with z_sem: statistics, directions, components, probes, two-sample tests. Arrays only."""

from monai_diffae.latents.components import PrincipalComponents, principal_components
from monai_diffae.latents.direction_fit import fit_direction
from monai_diffae.latents.directions import Direction
from monai_diffae.latents.probes import ProbeResult, classifier_probe, pca_features, ridge_probe, score_with_interval
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
    "LatentStatistics",
    "PermutationTest",
    "PrincipalComponents",
    "ProbeResult",
    "classifier_probe",
    "copying_ratio",
    "difference_interval",
    "energy_distance",
    "fit_direction",
    "mmd",
    "nearest_distances",
    "pca_features",
    "permutation_test",
    "principal_components",
    "ridge_probe",
    "score_with_interval",
]
