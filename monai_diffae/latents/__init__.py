"""Computations on z_sem: statistics, directions, components, neighbors and two-sample tests. Arrays only."""

from monai_diffae.latents.components import PrincipalComponents, principal_components
from monai_diffae.latents.directions import Direction, fit_direction
from monai_diffae.latents.neighbors import (
    Neighbors,
    OutlierScores,
    ReferenceCases,
    nearest_neighbors,
    outlier_scores,
    p_values,
)
from monai_diffae.latents.representation import Disentanglement, dci
from monai_diffae.latents.statistics import ActiveDimensions, LatentStatistics, active_dimensions, whitening
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
    "ActiveDimensions", "DifferenceInterval", "Direction", "Disentanglement", "LatentStatistics", "Neighbors",
    "OutlierScores", "PermutationTest", "PrincipalComponents", "ReferenceCases", "active_dimensions",
    "copying_ratio", "dci", "difference_interval", "energy_distance", "fit_direction", "mmd", "nearest_distances",
    "nearest_neighbors", "outlier_scores", "p_values", "permutation_test", "principal_components", "whitening",
]  # fmt: skip
